// One small bus: modules tell what happened and do not know who listens.

const bus = new EventTarget();

/**
 * Listen for something that happens.
 * @param {string} name
 * @param {(detail: any) => void} listener
 */
export function on(name, listener) {
  bus.addEventListener(name, (event) => listener(/** @type {CustomEvent} */ (event).detail));
}

/**
 * Tell that something happened.
 * @param {string} name
 * @param {any} [detail]
 */
export function emit(name, detail) {
  bus.dispatchEvent(new CustomEvent(name, { detail }));
}
