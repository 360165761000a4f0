// Runs before the first paint, so that a dark page never flashes light.
(() => {
  try {
    const theme = localStorage.getItem("naiad.theme");
    if (theme) document.documentElement.dataset.theme = theme;
  } catch { /* storage is forbidden: the system's own theme it is */ }
})();
