/** What the page knows, in one place; whoever shows a part of it is told when it changes. */

/**
 * @template {object} T
 * @param {T} initial
 */
export function createState(initial) {
  const values = { ...initial };
  const watchers = [];
  return {
    /** Read only: change it with `set`. */
    values,
    /** @param {Partial<T>} changes */
    set(changes) {
      const changed = Object.keys(changes).filter((key) => !Object.is(values[key], changes[key]));
      if (!changed.length) return;
      Object.assign(values, changes);
      for (const { keys, show } of watchers) {
        if (changed.some((key) => keys.includes(key))) show(values);
      }
    },
    /** Call `show` now and whenever one of `keys` changes. */
    watch(keys, show) {
      watchers.push({ keys, show });
      show(values);
    },
  };
}

/**
 * The page's phase is one of
 * - `loading` asks for models, `key` needs an API key, `empty` invites to play
 * - `connecting` opens a session, `measuring` takes a step without a cache
 * - `ready` waits for an action, `playing` steps, `paused` waits for a person
 * - `busy` was refused and comes back, `reconnecting` has lost the connection
 * - `expired` has lost the session, `failed` cannot go on by itself
 *
 * and a session is open, or will be again, in these.
 */
export const LIVE = new Set(['ready', 'playing', 'paused', 'busy', 'reconnecting']);
