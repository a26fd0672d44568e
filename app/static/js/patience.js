/** Asks until the server has time, or answers at all. */

import { ApiError } from './api.js';

const LEAST_SECONDS = 0.5;
const UNREACHABLE_SECONDS = [1, 2, 4, 8];

/** Seconds to wait after a refusal. */
export function waitSeconds(retryAfter) {
  return Math.max(LEAST_SECONDS, retryAfter ?? 1);
}

/**
 * @template T
 * @param {() => Promise<T>} ask
 * @param {{check: () => void, waits: Function, goesOn: () => void}} ways
 *   `check` throws if the answer is not wanted any more; `waits(error, seconds, skip)` is told of every refusal, and
 *   may call `skip` so as not to wait any longer; `goesOn` is told that the next attempt begins
 * @returns {Promise<T>}
 * @throws {ApiError} the refusal is for good
 */
export async function patiently(ask, { check, waits, goesOn }) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await ask();
      check();
      return answer;
    } catch (error) {
      check();
      if (!(error instanceof ApiError) || !(error.busy || error.status === 0)) throw error;
      const slower = UNREACHABLE_SECONDS[Math.min(attempt, UNREACHABLE_SECONDS.length - 1)];
      const seconds = error.busy ? waitSeconds(error.retryAfter) : slower;
      await new Promise((resolve) => {
        setTimeout(resolve, 1000 * seconds);
        waits(error, seconds, resolve);
      });
      check();
      goesOn();
    }
  }
}
