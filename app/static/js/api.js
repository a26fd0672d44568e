/** The service over HTTP. */

const KEY_NAME = 'worldcache-key';

/** A refusal, as the service words it. `status` is 0 if no answer came at all. */
export class ApiError extends Error {
  constructor(status, error, retryAfter = null) {
    super(error.message);
    this.name = 'ApiError';
    this.status = status;
    this.code = error.code;
    this.param = error.param ?? null;
    this.retryAfter = retryAfter;
  }

  /** True if it is worth coming back without a change. */
  get busy() {
    return this.status === 429 || this.status === 503;
  }

  /** True if the session is not there any more. */
  get gone() {
    return this.status === 410 || this.status === 404;
  }
}

/** Bytes as unpadded base64url, which a subprotocol may contain. */
function base64url(text) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

export class Api {
  /** @param {Storage} storage keeps the key until the tab is closed */
  constructor(storage) {
    this.storage = storage;
  }

  get key() {
    return this.storage.getItem(KEY_NAME);
  }

  set key(key) {
    if (key) this.storage.setItem(KEY_NAME, key);
    else this.storage.removeItem(KEY_NAME);
  }

  /** Subprotocols to offer to the socket: with a key, they carry it. */
  get protocols() {
    return this.key ? ['worldcache', `bearer.${base64url(this.key)}`] : [];
  }

  models() {
    return this.request('GET', '/v1/models').then((answer) => answer.data);
  }

  model(id) {
    return this.request('GET', `/v1/models/${encodeURIComponent(id)}`);
  }

  load(id) {
    return this.request('POST', `/v1/models/${encodeURIComponent(id)}/load`);
  }

  policies() {
    return this.request('GET', '/v1/policies').then((answer) => answer.data);
  }

  createSession(fields) {
    return this.request('POST', '/v1/sessions', { body: fields });
  }

  session(id) {
    return this.request('GET', `/v1/sessions/${id}`);
  }

  fork(id) {
    return this.request('POST', `/v1/sessions/${id}/fork`);
  }

  setCache(id, cache) {
    return this.request('PATCH', `/v1/sessions/${id}`, { body: { cache } });
  }

  step(id, actions, signal) {
    return this.request('POST', `/v1/sessions/${id}/step`, { body: { actions }, signal });
  }

  /** Close a session; also while the page is being left. */
  close(id) {
    return this.request('DELETE', `/v1/sessions/${id}`, { keepalive: true });
  }

  /**
   * One exchange.
   * @throws {ApiError} the service refused, or did not answer (status 0)
   */
  async request(method, path, { body, signal, keepalive } = {}) {
    const headers = {};
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(path, { method, headers, signal, keepalive, body: JSON.stringify(body) });
    } catch (error) {
      if (error.name === 'AbortError' || error.name === 'TimeoutError') throw error;
      throw new ApiError(0, { code: 'unreachable', message: 'the server does not answer' });
    }
    const answer = await response.json().catch(() => null);
    if (response.ok && answer !== null) return answer;
    const error = answer?.error ?? {
      code: 'unexpected', message: `the server answered ${response.status} without a reason`,
    };
    const seconds = Number.parseFloat(response.headers.get('Retry-After') ?? '');
    throw new ApiError(response.status, error, Number.isFinite(seconds) ? seconds : null);
  }
}
