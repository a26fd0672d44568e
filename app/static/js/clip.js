/** A clip as data: the request that makes the same frames again. */

const LONGEST_TEXT = 500;

/** Changes of the cache as one text, the latest ones if they are many. */
function changesText(changes) {
  const kept = [...changes];
  while (JSON.stringify(kept).length > LONGEST_TEXT) kept.shift();
  return JSON.stringify(kept);
}

/**
 * A body for `POST /v1/rollouts`: the actions from frame 0 up to now.
 *
 * The frames are the same ones if the cache was not changed on the way; its changes are in `metadata`.
 */
export function rolloutOf(track, start, cacheChanges) {
  const { model, seed, cache, num_inference_steps: steps, guidance_scale: guidance } = track.session;
  const actions = [];
  // Frames that were lost to a bad connection took the action before them, or the one after.
  const known = track.actions.find((action) => action !== undefined);
  for (let i = 0; i < track.actions.length; i += 1) actions.push(track.actions[i] ?? actions.at(-1) ?? known);
  return {
    model,
    observation: { start },
    seed,
    num_inference_steps: steps,
    guidance_scale: guidance,
    ...(cache === null ? {} : { cache }),
    actions,
    metadata: { made_by: 'playground', cache_changes: changesText(cacheChanges) },
  };
}
