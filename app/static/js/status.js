/** What the page says about where it is. */

import { byId, setText } from './dom.js';

const PAUSES = {
  person: 'Paused',
  idle: 'Paused: nobody has pressed a key for a while',
  hidden: 'Paused while the tab was hidden',
  error: 'Paused: a step failed',
};

/** Seconds until the next attempt, as text. */
function countdown(retryAt) {
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  return seconds > 0 ? `Trying again in ${seconds} s.` : 'Trying again.';
}

function sentence(text) {
  if (!text) return '';
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** What may be said of the model before anything was played. */
function invitation({ model }) {
  const preset = model?.presets?.[model.default_preset];
  const share = preset?.full_steps
    ? `computes ${preset.full_steps} of its ${model.num_inference_steps} denoise steps and predicts the rest`
    : 'predicts most of its denoise steps instead of computing them';
  return `A diffusion model makes every frame. WorldCache ${share}, so that it keeps up with you.`;
}

/** By phase: the pill, and what lies over the world. */
const DESCRIPTIONS = {
  loading: () => ({ pill: 'Loading' }),
  key: () => ({
    pill: 'API key needed',
    title: 'This server asks for a key',
    text: 'It is kept in this tab until you close it, and sent to this server only.',
  }),
  empty: (values) => ({
    pill: 'Ready',
    title: 'A world that is dreamt as you play',
    text: invitation(values),
    primary: ['Play', 'play'],
    hint: 'Arrow keys, WASD and space, the digits, or the buttons below.',
  }),
  connecting: ({ notice }) => ({
    pill: 'Connecting', title: 'Opening a session', text: notice ?? 'A moment.', busy: true,
  }),
  measuring: () => ({
    pill: 'Measuring',
    title: 'First, without the cache',
    text: 'One step of the same world, fully computed, to compare with.',
    busy: true,
  }),
  ready: () => ({ pill: 'Ready: press an action' }),
  playing: () => ({ pill: 'Playing' }),
  paused: ({ pausedBy }) => ({
    pill: PAUSES[pausedBy],
    title: 'Paused',
    text: pausedBy === 'person' ? 'Press an action to go on.' : sentence(PAUSES[pausedBy]),
    primary: ['Resume', 'resume'],
    light: true,
  }),
  busy: ({ error, retryAt }) => ({
    pill: 'Server busy',
    title: 'The server is busy',
    text: `${sentence(error)} ${countdown(retryAt)}`,
    primary: ['Try now', 'retry'],
    counting: true,
  }),
  reconnecting: ({ retryAt }) => ({
    pill: 'Reconnecting',
    title: navigator.onLine ? 'The connection is gone' : 'You are offline',
    text: `Your session is kept for a while. ${countdown(retryAt)}`,
    primary: ['Try now', 'retry'],
    counting: true,
  }),
  expired: ({ error }) => ({
    pill: 'Session over',
    title: 'This session is over',
    text: sentence(error ?? 'it was closed, or nobody had used it for a while'),
    primary: ['New session', 'play'],
  }),
  failed: ({ error }) => ({
    pill: 'Stopped', title: 'That did not work', text: sentence(error), primary: ['Try again', 'again'],
  }),
};

export class Status {
  /** @param {Record<string, () => void>} deeds what the buttons do, by name */
  constructor(state, deeds) {
    this.state = state;
    this.deeds = deeds;
    this.overlay = byId('overlay');
    this.primary = byId('overlay-primary');
    this.deed = null;
    this.timer = null;
    this.primary.addEventListener('click', () => this.deeds[this.deed]());
    state.watch(['phase', 'error', 'retryAt', 'pausedBy', 'model', 'notice', 'keyError'], () => this.show());
  }

  show() {
    clearTimeout(this.timer);
    const { values } = this.state;
    const { pill, title, text, primary, hint, busy, light, counting } = DESCRIPTIONS[values.phase](values);
    document.body.dataset.phase = values.phase;
    setText(byId('status-text'), pill);
    this.overlay.hidden = !title;
    this.overlay.dataset.kind = busy ? 'busy' : light ? 'light' : 'full';
    setText(byId('overlay-title'), title ?? '');
    setText(byId('overlay-text'), text ?? '');
    setText(byId('overlay-hint'), hint ?? '');
    this.primary.hidden = !primary;
    if (primary) {
      setText(this.primary, primary[0]);
      this.deed = primary[1];
    }
    byId('key-form').hidden = values.phase !== 'key';
    setText(byId('key-error'), values.keyError ?? '');
    const note = byId('notice');
    note.hidden = !values.notice || values.phase === 'connecting';
    setText(note, note.hidden ? '' : sentence(values.notice));
    if (counting) this.timer = setTimeout(() => this.show(), 250);
  }
}
