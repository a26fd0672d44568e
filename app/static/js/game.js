/** Plays: opens sessions, turns what a person does into steps, and goes on after trouble. */

import { ApiError } from './api.js';
import { Driver } from './driver.js';
import { measureUncached } from './measure.js';
import { patiently, waitSeconds } from './patience.js';
import { Projector } from './projector.js';
import { StepLost, Track } from './track.js';

const MEASURE_TIMEOUT_MS = 8000;
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
    this.projector = new Projector(stage, {
      interval: () => this.frameInterval, shown: (moment) => this.shown(moment),
    });
    this.tracks = [];
    this.epoch = 0;
    this.speed = 'free';
    this.wants = false;
    this.driver = null;
    this.driven = null;
    this.work = Promise.resolve();
    this.cacheChanges = [];
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
        if (model.status === 'failed') {
          throw new ApiError(500, { code: 'model_failed', message: model.reason ?? 'the model cannot be loaded' });
        }
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
      frame: (track, frame) => this.arrived(track, frame),
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

  /** Frames are counted anew. */
  begun() {
    this.projector.begin(this.tracks);
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

  /** Ask until the server has time, or answers at all; the page says what it waits for. */
  patiently(epoch, ask) {
    return patiently(ask, {
      check: () => this.check(epoch),
      waits: (error, seconds, skip) => {
        this.skipWait = skip;
        const phase = error.busy ? 'busy' : 'reconnecting';
        this.state.set({ phase, error: error.message, retryAt: performance.now() + 1000 * seconds });
      },
      goesOn: () => this.state.set({ phase: 'connecting', retryAt: null }),
    });
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
    const elsewhere = 'the session was opened elsewhere, in another tab perhaps';
    if (reason === 'key') this.state.set({ phase: 'key', keyError: null });
    else if (reason === 'failed') this.state.set({ phase: 'failed', error: error.message });
    else this.state.set({ phase: 'expired', error: reason === 'taken' ? elsewhere : null });
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
      const retryAt = performance.now() + 1000 * waitSeconds(retryAfter);
      this.state.set({ phase: 'busy', error: error.message, retryAt });
    } else if (error.param?.startsWith('cache') || error.code === 'policy_not_calibrated') {
      this.hooks.cacheFailed(this.tracks.indexOf(track), error);
    } else {
      this.state.set({ notice: error.message });
    }
  }

  arrived(track, frame) {
    const { dropped } = frame;
    if (dropped) this.state.set({ notice: `${dropped} frames were lost: they come faster than they are read` });
    this.projector.add(track, frame);
  }

  shown(moment) {
    const [frame] = moment.frames;
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
    if (!this.free) this.driver?.wake();
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
    this.stopDriving();
    await this.driven;
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
      const steps = Math.floor((this.projector.frame + 1) / session.frames_per_step) - REWIND_STEPS;
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
      const target = Math.floor((this.projector.frame + 1) / step) * step;
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

  /** Take step after step with all tracks. */
  drive() {
    if (this.driver) return;
    let action = this.anyAction;
    const length = (1000 * this.tracks[0].session.frames_per_step) / this.model.fps;
    const driver = new Driver(this.tracks, {
      next: () => {
        const going = this.speed === 'step' ? null : this.controls.current ?? action;
        const meant = this.controls.takeTap() ?? going;
        action = meant ?? action;
        return meant;
      },
      rests: () => {
        this.state.set({ phase: 'ready' });
        for (const track of this.tracks) track.meter.restart();
      },
      pace: () => (this.speed === 'paced' ? length : 0),
    });
    this.driver = driver;
    this.controls.taps.length = 0;
    this.driven = this.guarded(this.epoch, () => this.runDriver(driver));
  }

  async runDriver(driver) {
    try {
      await driver.run();
    } catch (error) {
      if (error instanceof StepLost && error.code) {
        this.wants = false;
        this.state.set({ phase: 'paused', pausedBy: 'error' });
      }
      throw error;
    } finally {
      if (this.driver === driver) this.driver = null;
    }
  }

  stopDriving() {
    this.driver?.stop();
    this.driver = null;
  }
}
