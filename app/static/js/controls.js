/** Actions from keys, buttons and sliders. */

import { make, readable } from './dom.js';
import { idleIndex, mapKeys } from './keys.js';

const FIELDS = 'input:not([type=checkbox]), select, textarea, [contenteditable]';
const SPACED = 'button, a, summary, input';
const MOST_TAPS = 4;

/** What a person does now: which actions are held, and which were only tapped. */
export class Controls {
  /**
   * @param {HTMLElement} root is filled with buttons or sliders
   * @param {() => void} changed is called when another action is meant
   */
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.space = null;
    this.enabled = false;
    this.held = [];
    this.taps = [];
    addEventListener('keydown', (event) => this.keyDown(event));
    addEventListener('keyup', (event) => this.release(`key ${event.code}`));
    addEventListener('blur', () => this.releaseAll());
  }

  /** Offer the actions of a space. */
  use(space) {
    this.space = space;
    this.held = [];
    this.taps = [];
    this.buttons = [];
    this.vector = null;
    if (space.type === 'discrete') this.useNames(space.names);
    else if (space.type === 'box') this.useBox(space);
    else {
      this.root.replaceChildren(make('p', { class: 'note' },
        `This model takes actions of the kind “${space.type}”, which need a program: use the HTTP interface.`));
    }
  }

  get usable() {
    return this.space?.type === 'discrete' || this.space?.type === 'box';
  }

  /** What is done while nothing is pressed; null to go on with the last action. */
  get idle() {
    return this.space.type === 'discrete' ? this.idleAction : null;
  }

  /** The action that is meant now; null if nothing is pressed and the model has no idle action. */
  get current() {
    if (this.vector) return [...this.vector];
    return this.held.length ? this.space.names[this.held.at(-1).index] : this.idle;
  }

  /** For one step: what was tapped and let go again comes first. Null if nobody does anything. */
  takeTap() {
    return this.taps.shift() ?? (this.held.length ? this.current : null);
  }

  useNames(names) {
    const idle = idleIndex(names);
    const { codes, caps } = mapKeys(names);
    this.idleAction = idle === null ? null : names[idle];
    this.codes = codes;
    this.buttons = names.map((name, index) => this.makeButton(name, index, caps[index]));
    this.root.replaceChildren(...this.buttons);
    this.root.dataset.kind = 'buttons';
  }

  makeButton(name, index, caps) {
    const keys = caps.map((cap) => make('kbd', {}, cap));
    const button = make('button', { type: 'button', class: 'action', 'aria-pressed': 'false', 'data-action': name },
      make('span', { class: 'action-name' }, readable(name)), make('span', { class: 'keys', 'aria-hidden': 'true' }, ...keys));
    button.addEventListener('pointerdown', (event) => {
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      button.focus({ preventScroll: true });
      this.press(`pointer ${event.pointerId}`, index);
    });
    for (const type of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      button.addEventListener(type, (event) => this.release(`pointer ${event.pointerId}`));
    }
    button.addEventListener('contextmenu', (event) => event.preventDefault());
    button.addEventListener('keydown', (event) => {
      if (event.code !== 'Enter' && event.code !== 'Space') return;
      event.preventDefault();
      event.stopPropagation();
      if (!event.repeat) this.press(`key ${event.code}`, index);
    });
    // What is neither a pointer nor a key, such as a screen reader's click, is a tap.
    button.addEventListener('click', (event) => {
      if (event.detail || !event.isTrusted) return;
      this.press('click', index);
      setTimeout(() => this.release('click'), 120);
    });
    return button;
  }

  useBox({ shape, low, high, names }) {
    const size = shape.reduce((product, side) => product * side, 1);
    const at = (bound, i) => (Array.isArray(bound) ? bound.flat(Infinity)[i] : bound);
    this.vector = Array.from({ length: size }, (_, i) => Math.max(at(low, i), Math.min(at(high, i), 0)));
    const sliders = this.vector.map((value, i) => {
      const name = readable(names?.[i] ?? `Axis ${i + 1}`);
      const shown = make('output', {}, value.toFixed(2));
      const slider = make('input', {
        type: 'range', min: at(low, i), max: at(high, i), step: 'any', value, 'aria-label': name,
      });
      slider.addEventListener('input', () => {
        this.vector[i] = slider.valueAsNumber;
        shown.textContent = slider.valueAsNumber.toFixed(2);
        this.moved();
      });
      return make('label', { class: 'slider' }, make('span', {}, name), slider, shown);
    });
    this.root.replaceChildren(...sliders);
    this.root.dataset.kind = 'sliders';
  }

  moved() {
    this.taps = [[...this.vector]];
    if (this.enabled) this.changed();
  }

  keyDown(event) {
    if (!this.enabled || !this.codes || this.vector || event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (target.closest?.(FIELDS)) return;
    if (event.code === 'Space' && target.closest?.(SPACED)) return;
    const index = this.codes.get(event.code);
    if (index === undefined) return;
    event.preventDefault();
    if (!event.repeat) this.press(`key ${event.code}`, index);
  }

  press(source, index) {
    if (!this.enabled || this.held.some((one) => one.source === source)) return;
    this.held.push({ source, index });
    if (this.taps.length < MOST_TAPS) this.taps.push(this.space.names[index]);
    this.show();
    this.changed();
  }

  release(source) {
    const before = this.held.length;
    this.held = this.held.filter((one) => one.source !== source);
    if (this.held.length === before) return;
    this.show();
    if (this.enabled) this.changed();
  }

  releaseAll() {
    for (const { source } of [...this.held]) this.release(source);
  }

  show() {
    this.buttons.forEach((button, index) => {
      button.setAttribute('aria-pressed', String(this.held.some((one) => one.index === index)));
    });
  }
}
