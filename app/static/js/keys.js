/** Which key means which action, for any list of names. */

const IDLE = /^(noop|no_op|none|idle|stay|nothing|wait)$/i;
const GROUPS = [
  { words: ['left'], codes: ['ArrowLeft', 'KeyA'], caps: ['←', 'A'] },
  { words: ['right'], codes: ['ArrowRight', 'KeyD'], caps: ['→', 'D'] },
  { words: ['forward', 'up'], codes: ['ArrowUp', 'KeyW'], caps: ['↑', 'W'] },
  { words: ['backward', 'backwards', 'back', 'down'], codes: ['ArrowDown', 'KeyS'], caps: ['↓', 'S'] },
  { words: ['attack', 'fire', 'shoot', 'jump', 'use'], codes: ['Space'], caps: ['Space'] },
];
const MOST_NUMBERS = 9;

/** The index of the action that does nothing; null if there is none. */
export function idleIndex(names) {
  const index = names.findIndex((name) => IDLE.test(name));
  return index < 0 ? null : index;
}

/**
 * Keys of actions: arrows, WASD and the space bar by name, and the digits by number.
 *
 * Where two actions go the same way, as TURN_LEFT and MOVE_LEFT do, the turn gets the arrow and the move the letter.
 * @returns {{codes: Map<string, number>, caps: string[][]}}
 */
export function mapKeys(names) {
  const codes = new Map();
  const caps = names.map((_, i) => (i < MOST_NUMBERS ? [String(i + 1)] : []));
  for (let i = 0; i < Math.min(names.length, MOST_NUMBERS); i += 1) {
    codes.set(`Digit${i + 1}`, i);
    codes.set(`Numpad${i + 1}`, i);
  }
  for (const group of GROUPS) {
    const found = names.flatMap((name, index) => (goes(name, group) ? [{ name, index }] : []));
    const turns = ({ name }) => (/turn|look|rotate/i.test(name) ? 0 : 1);
    found.sort((a, b) => turns(a) - turns(b));
    const shares = found.length > 1 && group.codes.length > 1 ? found.slice(0, 2) : found.slice(0, 1);
    group.codes.forEach((code, i) => {
      const owner = shares[Math.min(i, shares.length - 1)];
      if (!owner) return;
      codes.set(code, owner.index);
      caps[owner.index].splice(-1, 0, group.caps[i]);
    });
  }
  return { codes, caps };
}

/** True if a name says one of a group's words, and no other group's. */
function goes(name, group) {
  const words = name.toLowerCase().split(/[^a-z]+/);
  const said = GROUPS.filter((one) => one.words.some((word) => words.includes(word)));
  return said.length === 1 && said[0] === group;
}
