"""Converted checkpoints in vLLM against recorded outputs of the authors' code, in float32.

Each runs in a process of its own: an engine does not leave the process that it was started in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve.checkpoint.convert import convert

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from serve.checkpoint.verify import verify

if __name__ == "__main__":
    found = verify(Path(sys.argv[1]), Path(sys.argv[2]))
    from vllm.renderers.hf import _detect_content_format
    from serve.checkpoint.template import CHAT_TEMPLATE
    kind = _detect_content_format(CHAT_TEMPLATE, default="string")
    result = {"passed": found.passed, "content_format": kind, "text": found.render()}
    print("RESULT" + json.dumps(result | asdict(found)))
"""


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["with-vision-tower", "without-vision-tower"])
def test_vllm_computes_what_the_authors_code_computes(tmp_path: Path, name: str) -> None:
    convert(GOLDEN / name / "checkpoint", tmp_path / "converted")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "converted"), str(GOLDEN / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=Path(__file__).parents[2],
        env=None,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    result = json.loads(lines[0].removeprefix("RESULT"))
    assert result["passed"], result["text"]
    assert len(result["cases"]) >= 6
    assert all(case["token_ids_equal"] and case["greedy_equal"] for case in result["cases"])
    assert max(case["logprob_error"] for case in result["cases"]) < 0.05
    assert result["multi_turn_equal"]
    # An image that is not looked at would leave the answer as it is.
    assert result["image_effect"] > 0.5
    assert result["content_format"] == "openai"
