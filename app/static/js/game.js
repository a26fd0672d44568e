/** Plays: opens sessions, turns what a person does into steps, and goes on after trouble. */

import { ApiError } from './api.js';
import { measureUncached } from './measure.js';
import { Presenter } from './presenter.js';
import { StepLost, Track } from './track.js';

const MEASURE_TIMEOUT_MS = 8000;
const LEAST_RETRY_SECONDS = 0.5;
const UNREACHABLE_SECONDS = [1, 2, 4, 8];
const REWIND_STEPS = 4;
const LOAD_POLL_MS = 500;

/** Work that a newer wish has made pointless. */
class Superseded extends Error {}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Game {
  /**
   * @param {import('./api.js').Api} api
   * @param {ReturnType<import('./state.js').createState>} state is told of phases and figures
   * @param {import('./controls.js').Controls} controls
   * @param {import('./stage.js').Stage} stage
   * @param {{model: Function, moment: Function, cache: Function, cacheFailed: Function}} hooks are told of each
   */
  constructor(api, state, controls, stage, hooks) {
    this.api = api;
    this.state = state;
    this.controls = controls;
    this.stage = stage;
    this.hooks = hooks;
    this.presenter = new Presenter((moment) => this.present(moment), () => this.frameInterval);
    this.tracks = [];
    this.epoch = 0;
    this.speed = 'free';
    this.wants = false;
    this.driving = null;
    this.wake = () => undefined;
    this.work = Promise.resolve();
    this.joined = new Map();
    this.cacheChanges = [];
    this.shownSeq = 0;
    this.shownFrame = -1;
  }

  get comparing() {
    return this.tracks.length > 1;
  }

  /** True if the server goes on by itself; else each step is asked for here. */
  get free() {
    return this.speed === 'free' && !this.comparing;
  }

  get frameInterval() {
    const [track] = this.tracks;
    return track ? track.meter.stepMilliseconds / track.session.frames_per_step || 1000 / this.model.fps : 0;
  }

  // Sessions

  /** Begin a new session, and play. */
  async start({ model, start, seed, cache }) {
    this.epoch += 1;
    const { epoch } = this;
    this.closeAll();
    this.stage.clear();
    this.stage.compare = false;
    this.state.set({ phase: 'connecting', comparing: false, frame: null, error: null, notice: null, uncached: null });
    await this.guarded(epoch, async () => {
      this.model = await this.loaded(model, epoch);
      this.hooks.model(this.model);
      const place = start || this.model.starts[0];
      this.state.set({ model: this.model, start: place });
      const fields = { model, observation: { start: place }, seed, cache };
      const session = await this.patiently(epoch, () => this.api.createSession(fields));
      const track = this.track(session);
      this.tracks = [track];
      this.cacheChanges = [{ frame: 0, cache: session.cache }];
      this.hooks.cache(0, session.cache);
      this.stage.use(this.model);
      this.controls.use(session.action_space);
      this.begun();
      if (!this.controls.usable) {
        this.state.set({ phase: 'failed', error: 'this page cannot make the actions that the model takes' });
        return;
      }
      this.state.set({ phase: 'measuring' });
      this.state.set({ uncached: await this.tryMeasuring(session.id, 1, MEASURE_TIMEOUT_MS) });
      this.check(epoch);
      this.wants = true;
      await track.open(this.free ? 'free' : 'lockstep');
    });
  }

  /** The model's description, once it is loaded. */
  async loaded(id, epoch) {
    let model = await this.patiently(epoch, () => this.api.model(id));
    if (model.status !== 'warm') {
      await this.patiently(epoch, () => this.api.load(id));
      while (model.status !== 'warm') {
        if (model.status === 'failed') throw new ApiError(500, { code: 'model_failed', message: model.reason ?? 'the model cannot be loaded' });
        this.state.set({ phase: 'connecting', notice: `The server is loading ${id}.` });
        await pause(LOAD_POLL_MS);
        model = await this.patiently(epoch, () => this.api.model(id));
      }
      this.state.set({ notice: null });
    }
    return model;
  }

  track(session) {
    const modalities = session.output.modalities ?? this.model.modalities.map(({ name }) => name);
    return new Track(this.api, session, modalities, {
      ready: (track) => this.ready(track),
      frame: (track, frame) => this.join(track, frame),
      step: (track) => this.stepped(track),
      told: (track, message) => this.told(track, message),
      lost: (track, delay) => this.lost(track, delay),
      ended: (track, reason, error) => this.ended(track, reason, error),
    });
  }

  /** Let go of all sessions. */
  closeAll() {
    this.stopDriving();
    this.wants = false;
    for (const track of this.tracks) track.close();
    this.tracks = [];
    this.begun();
  }

  /** Frames are counted anew: what was to be shown is of another past. */
  begun() {
    this.presenter.clear();
    this.joined.clear();
    this.shownSeq = 0;
    this.shownFrame = (this.tracks[0]?.session.frames ?? 0) - 1;
  }

  // Trouble

  /** Do something of an epoch; what goes wrong is shown. */
  async guarded(epoch, work) {
    try {
      await work();
    } catch (error) {
      if (error instanceof Superseded || epoch !== this.epoch) return;
      if (error instanceof StepLost) {
        // The connection tells by itself that it is gone; a refusal is told here.
        if (error.code) this.state.set({ notice: error.message });
        return;
      }
      if (!(error instanceof ApiError)) {
        this.state.set({ phase: 'failed', error: error.message });
        throw error;
      }
      this.wants = false;
      if (error.status === 401) this.state.set({ phase: 'key', keyError: null });
      else if (error.gone && this.tracks.length) this.state.set({ phase: 'expired', error: error.message });
      else this.state.set({ phase: 'failed', error: error.message });
    }
  }

  check(epoch) {
    if (epoch !== this.epoch) throw new Superseded();
  }

  /** Ask until the server has time, or answers at all. */
  async patiently(epoch, ask) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await ask();
        this.check(epoch);
        return answer;
      } catch (error) {
        this.check(epoch);
        if (!(error instanceof ApiError) || !(error.busy || error.status === 0)) throw error;
        const shortest = error.busy ? error.retryAfter ?? 1 : UNREACHABLE_SECONDS[Math.min(attempt, 3)];
        const seconds = Math.max(LEAST_RETRY_SECONDS, shortest);
        const phase = error.busy ? 'busy' : 'reconnecting';
        this.state.set({ phase, error: error.message, retryAt: performance.now() + 1000 * seconds });
        await Promise.race([pause(1000 * seconds), new Promise((resolve) => { this.skipWait = resolve; })]);
        this.check(epoch);
        this.state.set({ phase: 'connecting', retryAt: null });
      }
    }
  }

  /** Do not wait any longer before the next attempt. */
  retryNow() {
    this.skipWait?.();
    for (const track of this.tracks) track.connection?.retryNow();
  }

  lost(track, delay) {
    this.stopDriving();
    this.state.set({
      phase: 'reconnecting', error: 'the connection is gone', retryAt: performance.now() + delay,
    });
  }

  ended(track, reason, error) {
    this.stopDriving();
    if (reason === 'key') this.state.set({ phase: 'key', keyError: null });
    else if (reason === 'expired') this.state.set({ phase: 'expired', error: null });
    else if (reason === 'taken') this.state.set({ phase: 'expired', error: 'the session was opened elsewhere, in another tab perhaps' });
    else this.state.set({ phase: 'failed', error: error.message });
  }

  // What the server says

  ready() {
    if (!this.tracks.every((track) => track.connection?.open)) return;
    this.enqueue(async () => {
      await this.level();
      this.state.set({ retryAt: null, error: null });
      if (this.wants) await this.go();
      else this.state.set({ phase: 'paused', pausedBy: 'person' });
    });
  }

  /** After a lost connection one of two tracks may be a step ahead: bring both to the same frame. */
  async level() {
    if (!this.comparing) return;
    const frames = Math.min(...this.tracks.map((track) => track.session.frames));
    await this.askAll({ type: 'rewind', to_frame: frames });
    this.begun();
  }

  stepped() {
    if (this.wants && this.tracks.every((track) => track.connection?.open)) {
      this.state.set({ phase: 'playing', retryAt: null, error: null });
    }
  }

  told(track, message) {
    if (message.type === 'paused' && message.reason !== 'client') {
      this.wants = false;
      this.state.set({ phase: 'paused', pausedBy: message.reason });
    } else if (message.type === 'cache') {
      const side = this.tracks.indexOf(track);
      this.cacheChanges.push({ frame: track.session.frames, side, cache: message.cache });
      this.hooks.cache(side, message.cache);
    } else if (message.type === 'error') {
      this.refused(track, message);
    }
  }

  refused(track, { error, retry_after: retryAfter }) {
    if (retryAfter !== null && retryAfter !== undefined) {
      const seconds = Math.max(LEAST_RETRY_SECONDS, retryAfter);
      this.state.set({ phase: 'busy', error: error.message, retryAt: performance.now() + 1000 * seconds });
    } else if (error.param?.startsWith('cache') || error.code === 'policy_not_calibrated') {
      this.hooks.cacheFailed(this.tracks.indexOf(track), error);
    } else {
      this.state.set({ notice: error.message });
    }
  }

  // Frames

  /** Put frames of all tracks together by index. */
  join(track, frame) {
    const step = track.session.frames_per_step;
    if (!this.comparing) {
      this.presenter.push({ frames: [frame], step });
      return;
    }
    const frames = this.joined.get(frame.index) ?? [];
    frames[this.tracks.indexOf(track)] = frame;
    this.joined.set(frame.index, frames);
    if (this.tracks.every((_, side) => frames[side])) {
      this.joined.delete(frame.index);
      this.presenter.push({ frames, step });
    }
  }

  present(moment) {
    const [frame] = moment.frames;
    this.stage.show(moment);
    if (frame.seq > this.shownSeq) {
      this.shownSeq = frame.seq;
      if (frame.sentAt !== null) this.tracks[0]?.meter.latency(performance.now() - frame.sentAt);
    }
    this.shownFrame = frame.index;
    this.state.set({ frame: frame.index, skipRatio: frame.skipRatio });
    this.hooks.moment(moment);
  }

  // What a person wants

  /** One wish after the other. */
  enqueue(work) {
    const { epoch } = this;
    this.work = this.work.then(() => epoch === this.epoch && this.guarded(epoch, work));
    return this.work;
  }

  /** Another action is meant. */
  acted() {
    if (this.state.values.phase === 'paused') {
      if (this.controls.held.length) this.resume();
      return;
    }
    if (!this.wants) return;
    if (!this.free) this.wake();
    else if (this.controls.current !== null) this.tracks[0].act(this.controls.current);
  }

  async go() {
    this.wants = true;
    if (this.free) {
      await this.tracks[0].ask({ type: 'resume' }, 'resumed');
      this.controls.taps.length = 0;
      this.tracks[0].act(this.controls.current ?? this.anyAction);
      this.state.set({ phase: 'playing' });
    } else {
      this.drive();
    }
  }

  get anyAction() {
    return this.controls.idle ?? this.controls.space.names[0];
  }

  /** Stop the world where it is. */
  async halt() {
    const { driving } = this;
    this.stopDriving();
    await driving?.done;
    if (this.tracks[0]?.mode === 'free') await this.tracks[0].ask({ type: 'pause' }, 'paused');
    for (const track of this.tracks) track.meter.restart();
  }

  pause(by = 'person') {
    this.wants = false;
    return this.enqueue(async () => {
      this.state.set({ phase: 'paused', pausedBy: by });
      await this.halt();
    });
  }

  resume() {
    this.wants = true;
    return this.enqueue(() => this.go());
  }

  /** Do something while the world stands still, and go on as before. */
  between(work) {
    return this.enqueue(async () => {
      await this.halt();
      await work();
      if (this.wants) await this.go();
    });
  }

  reset() {
    return this.between(async () => {
      await this.askAll({ type: 'reset' });
      this.stage.clear();
      this.wentBack();
    });
  }

  /** A few steps back from what is shown. */
  rewind() {
    return this.between(async () => {
      const [{ session }] = this.tracks;
      const steps = Math.floor((this.shownFrame + 1) / session.frames_per_step) - REWIND_STEPS;
      const target = Math.max(0, steps * session.frames_per_step);
      await this.askAll({ type: 'rewind', to_frame: target });
      this.stage.forgetErrors();
      this.wentBack();
    });
  }

  wentBack() {
    this.begun();
    const { frames } = this.tracks[0].session;
    this.cacheChanges = this.cacheChanges.filter(({ frame }) => frame <= frames);
    this.state.set({ frame: frames ? frames - 1 : null });
  }

  askAll(message) {
    return Promise.all(this.tracks.map((track) => track.ask(message)));
  }

  setSpeed(speed) {
    if (!this.tracks.length) {
      this.speed = speed;
      return undefined;
    }
    return this.enqueue(async () => {
      await this.halt();
      this.speed = speed;
      await this.openAll();
    });
  }

  /** Connect in the mode that is wanted now; `ready` goes on from there. */
  async openAll() {
    const mode = this.free ? 'free' : 'lockstep';
    if (this.tracks.every((track) => track.mode === mode && track.connection?.open)) {
      if (this.wants) await this.go();
      return;
    }
    await Promise.all(this.tracks.map((track) => track.open(mode)));
  }

  setCache(side, cache) {
    const track = this.tracks[side];
    track?.ask({ type: 'cache', cache }).catch((error) => {
      if (!(error instanceof StepLost)) throw error;
      if (!error.code) this.hooks.cache(side, track.session.cache);
    });
  }

  /** Put a second session beside the first one: the same past, another cache. */
  compare(cache) {
    return this.enqueue(async () => {
      const { epoch } = this;
      await this.halt();
      const [first] = this.tracks;
      const step = first.session.frames_per_step;
      const target = Math.floor((this.shownFrame + 1) / step) * step;
      await first.ask({ type: 'rewind', to_frame: target });
      const session = await this.patiently(epoch, () => this.api.fork(first.session.id));
      Object.assign(session, await this.api.setCache(session.id, cache));
      const second = this.track(session);
      second.actions = [...first.actions];
      this.tracks = [first, second];
      this.begun();
      this.stage.compare = true;
      this.hooks.cache(1, session.cache);
      this.state.set({ comparing: true });
      await this.openAll();
    });
  }

  /** Back to one session. */
  endCompare() {
    return this.enqueue(async () => {
      await this.halt();
      const [first, second] = this.tracks;
      this.tracks = [first];
      second?.close();
      this.begun();
      this.stage.compare = false;
      this.state.set({ comparing: false });
      await this.openAll();
    });
  }

  measureAgain() {
    const { phase } = this.state.values;
    return this.between(async () => {
      this.state.set({ phase: 'measuring' });
      this.state.set({ uncached: await this.tryMeasuring(this.tracks[0].session.id, 2) });
      if (!this.wants) this.state.set({ phase });
    });
  }

  /** Null if the server has no time for it: playing goes first. */
  async tryMeasuring(id, steps, timeoutMs) {
    try {
      return await measureUncached(this.api, id, this.controls.current ?? this.anyAction, steps, { timeoutMs });
    } catch (error) {
      const late = error instanceof DOMException && error.name === 'TimeoutError';
      if (!late && !(error instanceof ApiError && (error.busy || error.status === 0))) throw error;
      const reason = late ? `a step takes more than ${timeoutMs / 1000} s` : error.message;
      this.state.set({ notice: `The uncached speed was not measured: ${reason}.` });
      return null;
    }
  }

  // Lock-step

  /** Take step after step with all tracks, the same action for each. */
  drive() {
    if (this.driving) return;
    const driving = { stopped: false, done: null };
    this.driving = driving;
    this.controls.taps.length = 0;
    driving.done = this.guarded(this.epoch, () => this.takeSteps(driving)).then(() => {
      if (this.driving === driving) this.driving = null;
    });
  }

  stopDriving() {
    if (this.driving) this.driving.stopped = true;
    this.driving = null;
    this.wake();
  }

  async takeSteps(driving) {
    let action = this.anyAction;
    while (!driving.stopped) {
      const meant = this.controls.takeTap() ?? (this.speed === 'step' ? null : this.controls.current ?? action);
      if (meant === null) {
        this.state.set({ phase: 'ready' });
        for (const track of this.tracks) track.meter.restart();
        await new Promise((resolve) => { this.wake = resolve; });
        continue;
      }
      action = meant;
      const began = performance.now();
      try {
        await Promise.all(this.tracks.map((track) => track.step(action)));
      } catch (error) {
        if (error instanceof StepLost && error.code) {
          this.wants = false;
          this.state.set({ phase: 'paused', pausedBy: 'error' });
        }
        throw error;
      }
      if (this.speed === 'paced') await this.keepPace(began);
    }
  }

  /** Wait until the game would be as far. */
  async keepPace(began) {
    const length = (1000 * this.tracks[0].session.frames_per_step) / this.model.fps;
    await pause(Math.max(0, length - (performance.now() - began)));
  }
}
