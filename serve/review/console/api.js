/** Requests to the review service. Knows paths and errors; does not know what is shown.
 *
 * The key lives in this closure and in the header of each request: in no URL, storage or cookie.
 */

const TIMEOUT_MS = 30_000;

/** An answer other than 200. `status` is 0 where there was none. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Whether a text can stand in a header at all. */
export function canBeKey(text) {
  return /^[\x21-\x7e]+$/.test(text);
}

/**
 * @param {string} base where the reviews are, such as /v1/reviews
 * @param {string} key the reviewer's
 * @param {AbortSignal} ended ends whatever is under way; what it ended throws an AbortError
 */
export function createApi(base, key, ended) {
  async function send(path, options = {}) {
    let response;
    try {
      response = await fetch(base + path, {
        ...options,
        headers: { authorization: `Bearer ${key}`, ...options.headers },
        signal: AbortSignal.any([ended, AbortSignal.timeout(TIMEOUT_MS)]),
        cache: "no-store",
        credentials: "omit",
        mode: "same-origin",
        redirect: "error",
        referrerPolicy: "no-referrer",
      });
    } catch (error) {
      ended.throwIfAborted();
      throw new Refused(0, "unreachable", "The service cannot be reached.");
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    const { code = "unknown", message = "The service refused." } = body.error ?? {};
    throw new Refused(response.status, code, message);
  }

  async function json(path, options) {
    return (await send(path, options)).json();
  }

  const of = (id) => `/${encodeURIComponent(id)}`;
  return {
    list: (query) => json(`?${new URLSearchParams(query)}`),
    item: (id) => json(of(id)),
    image: async (id, index) => (await send(`${of(id)}/images/${Number(index)}`)).blob(),
    act: (id, action, body) =>
      json(`${of(id)}/${action}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      }),
  };
}
