"""How drafts fare with reviewers: rates by finding, template and model, each with an interval.

Only findings that a clinician gave a verdict on count (whoever signs off agrees with the rest):

- agreement: agree / all verdicts
- over-call rate: overcall / findings judged that the draft calls present or indeterminate
- wrong-side rate: wrong_side / the same
- miss rate: missed / (missed + agree where the draft calls the finding present)

Intervals are Wilson's, 95 % (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927): they hold for few cases
and for rates near 0. Drafts that nobody closed, and those that were shredded, are not in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, select

from guardrails.answers import Status
from serve.audit import schema
from serve.audit.records import Agreement, Model
from serve.audit.store import Store
from serve.review import items, states
from serve.review.items import Content, Item

By = Literal["all", "finding", "template", "model"]
BATCH = 500  # items read at a time; a long statement would be ended by the store's timeout
CONFIDENCE = 0.95


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_View):
    """``count`` of ``of``, with the interval's ends; no rate where there are none."""

    count: int
    of: int
    rate: float | None
    low: float | None
    high: float | None


class Group(_View):
    """The rates of one finding, template or model; ``all`` has one group of no name."""

    by: By
    name: str
    reviews: int
    verdicts: int
    agreement: Rate
    overcall: Rate
    miss: Rate
    wrong_side: Rate
    median_seconds: float | None  # from claim to close, of the reviews in it


class Report(_View):
    """``GET /v1/reviews/stats`` and ``llava-med review stats --json``."""

    object: Literal["review.stats"] = "review.stats"
    signed_off: int
    amended: int
    rejected: int
    unreadable: int  # shredded, or they do not open
    groups: tuple[Group, ...]


@dataclass(slots=True)
class Cell:
    """What is counted of one group."""

    verdicts: Counter[Agreement] = field(default_factory=Counter)
    called: int = 0  # judged, and present or indeterminate by the draft
    agreed_present: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, verdict: Agreement, status: Status | None) -> None:
        """Counts a verdict on what a draft says of a finding; None: it does not name it."""
        self.verdicts[verdict] += 1
        self.called += status in (Status.PRESENT, Status.INDETERMINATE)
        self.agreed_present += verdict == "agree" and status is Status.PRESENT


@dataclass(slots=True)
class Tally:
    """Everything that is counted."""

    states: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    cells: dict[tuple[By, str], Cell] = field(default_factory=dict)

    def add(self, item: Item, content: Content) -> None:
        """Counts a closed review."""
        self.states[item.state] += 1
        drafted = content.findings
        request = content.request
        groups: dict[tuple[By, str], Mapping[str, Agreement]] = {}
        given = {one.finding: one.verdict for one in content.detail.findings}
        for whole in (("all", ""), ("template", request.template), ("model", name(request.model))):
            groups[whole] = given
        for finding, verdict in given.items():
            groups["finding", finding] = {finding: verdict}
        for key, verdicts in groups.items():
            cell = self.cells.setdefault(key, Cell())
            for finding, verdict in verdicts.items():
                cell.add(verdict, drafted.get(finding))
            cell.seconds.append(content.detail.seconds or 0.0)


def tally(
    store: Store,
    *,
    since: int | None = None,
    until: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Reads every review that was closed in a time; opens each exchange.

    Args:
        store: where they are.
        since: microseconds since 1970, the first that counts.
        until: the first that does not.
        progress: told how many were read, after each batch.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the store does not answer.
    """
    result = Tally()
    for batch in _batches(store, since, until):
        with store.reading() as connection:
            inside = items.contents(store, connection, batch)
        for item in batch:
            content = inside[item.review_id]
            if isinstance(content, Content):
                result.add(item, content)
            else:
                result.unreadable += 1
        progress(len(batch))
    return result


def _batches(store: Store, since: int | None, until: int | None) -> Iterator[list[Item]]:
    table = schema.reviews
    wanted: list[ColumnElement[bool]] = [table.c.state.in_(states.CLOSED)]
    if since is not None:
        wanted.append(table.c.closed_at >= since)
    if until is not None:
        wanted.append(table.c.closed_at < until)
    last = ""
    while True:
        query = select(table).where(*wanted, table.c.review_id > last)
        with store.reading() as connection:
            rows = connection.execute(query.order_by(table.c.review_id).limit(BATCH)).all()
        if not rows:
            return
        yield [items.item_of(row) for row in rows]
        last = rows[-1].review_id


def report(found: Tally) -> Report:
    """The rates of what was counted; groups by kind, the largest first."""
    order = {"all": 0, "finding": 1, "template": 2, "model": 3}
    groups = [_group(by, label, cell) for (by, label), cell in found.cells.items()]
    groups.sort(key=lambda group: (order[group.by], -group.verdicts, group.name))
    return Report(
        signed_off=found.states["signed_off"],
        amended=found.states["amended"],
        rejected=found.states["rejected"],
        unreadable=found.unreadable,
        groups=tuple(groups),
    )


def by_kind(groups: tuple[Group, ...]) -> Iterator[tuple[By, list[Group]]]:
    """The groups, those of one kind together."""
    for kind, members in groupby(groups, key=lambda group: group.by):
        yield kind, list(members)


def name(model: Model) -> str:
    """A model by its id and the beginnings of its digests; an adapter too."""
    base = f"{model.id}@{model.digest[:12]}"
    if model.adapter is None:
        return base
    return f"{base}+{model.adapter}@{(model.adapter_digest or '')[:12]}"


def rate(count: int, of: int) -> Rate:
    """A share, with its interval."""
    if of == 0:
        return Rate(count=count, of=of, rate=None, low=None, high=None)
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(
        count=count, of=of, rate=count / of, low=float(interval.low), high=float(interval.high)
    )


def _group(by: By, label: str, cell: Cell) -> Group:
    verdicts = cell.verdicts
    total = sum(verdicts.values())
    return Group(
        by=by,
        name=label,
        reviews=len(cell.seconds),
        verdicts=total,
        agreement=rate(verdicts["agree"], total),
        overcall=rate(verdicts["overcall"], cell.called),
        miss=rate(verdicts["missed"], verdicts["missed"] + cell.agreed_present),
        wrong_side=rate(verdicts["wrong_side"], cell.called),
        median_seconds=median(cell.seconds) if cell.seconds else None,
    )
