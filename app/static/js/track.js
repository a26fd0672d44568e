/** One session as it is played: its connection, its actions, and its frames put together. */

import { Connection } from './connection.js';
import { Meter } from './meter.js';

/** The classes of tokens of one step by modality, as the service wrote them. */
function readMaps(maps) {
  return maps.map(({ chunk, modality, grid, classes }) => ({
    chunk, modality, grid, classes: Uint8Array.from(atob(classes), (letter) => letter.charCodeAt(0)),
  }));
}

/** A picture that can be drawn; its colours are left as they are sent. */
function decode(bytes, mime) {
  const options = { colorSpaceConversion: 'none', premultiplyAlpha: 'none' };
  return createImageBitmap(new Blob([bytes], { type: mime }), options);
}

/** A promise whose rejection may go unheard: not everyone who asks waits for the answer. */
function promised(keep) {
  const promise = new Promise((resolve, reject) => keep({ resolve, reject }));
  promise.catch(() => undefined);
  return promise;
}

/** A step that will not be answered: its connection is gone, or it was refused. */
export class StepLost extends Error {}

/**
 * Handlers, each told the track first:
 * - `ready(message)`, `frame(frame)`, `step(step)`, `told(message)`: what the server says
 * - `lost(delayMs)`, `ended(reason, error)`: what became of the connection
 *
 * A frame is `{index, seq, sentAt, action, skipRatio, dropped, pictures, step}`, `pictures` a promise of bitmaps by modality.
 */
export class Track {
  constructor(api, session, modalities, handlers) {
    this.api = api;
    this.session = session;
    this.modalities = modalities;
    this.handlers = handlers;
    this.meter = new Meter();
    this.connection = null;
    this.mode = null;
    this.seq = 0;
    this.sent = new Map();
    this.waiting = new Map();
    this.ackWaiting = [];
    this.part = null;
    this.steps = [];
    this.gone = false;
    /** The action of every frame so far, for the recording. */
    this.actions = [];
  }

  /** Connect, or connect anew in another mode; resolves once the server is ready. */
  open(mode) {
    this.disconnect();
    this.mode = mode;
    const ready = this.answer('ready');
    this.connection = new Connection(this.api, this.session, mode, {
      message: (message, bytes) => this.heard(message, bytes),
      lost: (delay) => {
        this.forget();
        this.handlers.lost(this, delay);
      },
      ended: (reason, error) => {
        this.forget();
        this.gone = reason === 'expired' || reason === 'taken';
        this.handlers.ended(this, reason, error);
      },
    });
    return ready;
  }

  disconnect() {
    this.connection?.close();
    this.connection = null;
    this.forget();
  }

  /** Disconnect, and let the server forget the session, if it has not yet. */
  async close() {
    this.disconnect();
    if (this.gone) return;
    this.gone = true;
    await this.api.close(this.session.id).catch(() => undefined); // it expires by itself
  }

  /** Do something from the next frame on. Returns its seq; null if it cannot be sent now. */
  act(action) {
    const seq = this.seq + 1;
    if (!this.connection?.send({ type: 'action', action, seq })) return null;
    this.seq = seq;
    this.sent.set(seq, { action, at: performance.now() });
    if (this.sent.size > 512) this.sent.delete(this.sent.keys().next().value);
    return seq;
  }

  /** In lock-step: one step; resolves as soon as it is computed. */
  step(action) {
    const seq = this.act(action);
    if (seq === null) return Promise.reject(new StepLost('not connected'));
    return promised((waiter) => this.waiting.set(seq, waiter));
  }

  /** Say something, and wait for the answer of that type. */
  ask(message, type = message.type) {
    const answer = this.answer(type);
    if (!this.connection?.send(message)) this.forget();
    return answer;
  }

  answer(type) {
    return promised((waiter) => this.ackWaiting.push({ type, ...waiter }));
  }

  /** Whoever waits for something that the connection took with it is told. */
  forget() {
    this.part = null;
    this.meter.restart();
    const waiting = [...this.waiting.values(), ...this.ackWaiting];
    this.waiting.clear();
    this.ackWaiting = [];
    for (const { reject } of waiting) reject(new StepLost('the connection is gone'));
  }

  heard(message, bytes) {
    if (message.type === 'frame') this.heardFrame(message, bytes);
    else if (message.type === 'step') this.heardStep(message);
    else this.heardAnswer(message);
  }

  heardFrame(message, bytes) {
    if (this.part?.index !== message.index) {
      const sent = this.sent.get(message.seq);
      this.part = {
        index: message.index,
        seq: message.seq,
        sentAt: sent?.at ?? null,
        action: sent?.action,
        skipRatio: message.skip_ratio,
        dropped: 0,
        pictures: {},
      };
    }
    const part = this.part;
    part.dropped += message.dropped;
    part.pictures[message.modality] = decode(bytes, message.mime);
    if (message.modality !== this.modalities.at(-1)) return;
    this.part = null;
    this.actions[part.index] = part.action;
    const names = Object.keys(part.pictures);
    const pictures = Promise.all(Object.values(part.pictures)).then((bitmaps) =>
      Object.fromEntries(names.map((name, i) => [name, bitmaps[i]])));
    this.handlers.frame(this, { ...part, pictures, step: this.steps.find((step) => step.holds(part.index)) });
  }

  heardStep(message) {
    const first = message.first_frame;
    const step = {
      first,
      frames: message.frames,
      stats: message.stats,
      maps: readMaps(message.token_maps),
      holds: (index) => index >= first && index < first + message.frames,
    };
    this.steps.push(step);
    if (this.steps.length > 8) this.steps.shift();
    this.session.frames = first + message.frames;
    this.meter.step(performance.now(), message.frames);
    this.handlers.step(this, step);
    for (const [seq, waiting] of this.waiting) {
      if (seq > message.seq) break;
      this.waiting.delete(seq);
      waiting.resolve(step);
    }
  }

  heardAnswer(message) {
    if (message.type === 'ready') Object.assign(this.session, message.session);
    if (message.type === 'cache') {
      Object.assign(this.session, { cache: message.cache, policy: message.policy });
      this.meter.restart();
    }
    if (message.type === 'rewind' || message.type === 'reset') this.went(message.frames);
    if (message.type === 'error') this.refused(message);
    const index = this.ackWaiting.findIndex(({ type }) => type === message.type);
    if (index >= 0) this.ackWaiting.splice(index, 1)[0].resolve(message);
    if (message.type === 'ready') this.handlers.ready(this, message);
    else this.handlers.told(this, message);
  }

  /** The session has gone back. */
  went(frames) {
    this.session.frames = frames;
    this.actions.length = Math.min(this.actions.length, frames);
    this.steps = [];
    this.part = null;
    this.meter.restart();
  }

  /** A refusal: busy steps are tried again by the server, others are answered here. */
  refused({ error, seq, retry_after: retryAfter }) {
    if (retryAfter !== null && retryAfter !== undefined) return;
    const failure = Object.assign(new StepLost(error.message), { code: error.code, param: error.param });
    if (seq !== null && seq !== undefined) {
      this.waiting.get(seq)?.reject(failure);
      this.waiting.delete(seq);
    } else {
      this.ackWaiting.shift()?.reject(failure);
    }
  }
}
