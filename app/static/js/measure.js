/** How fast the same session is without a cache: measured, on a fork of it. */

/**
 * Frames per second of the fastest of some uncached steps, answers and all.
 * @param {{timeoutMs?: number}} options a step that takes longer is given up
 * @throws {import('./api.js').ApiError|DOMException} it was refused, or took too long
 */
export async function measureUncached(api, sessionId, action, steps, { timeoutMs } = {}) {
  const fork = await api.fork(sessionId);
  try {
    await api.setCache(fork.id, 'none');
    let best = 0;
    for (let i = 0; i < steps; i += 1) {
      const signal = timeoutMs ? AbortSignal.timeout(timeoutMs) : undefined;
      const began = performance.now();
      const { frames } = await api.step(fork.id, [action], signal);
      best = Math.max(best, (1000 * frames.length) / (performance.now() - began));
    }
    return best;
  } finally {
    api.close(fork.id).catch(() => undefined); // it expires by itself
  }
}
