// Sets the theme that the reader chose before anything is drawn; without a choice the system's holds.
(function () {
    "use strict";
    try {
        var chosen = window.localStorage.getItem("meterbridge-theme");
        if (chosen === "light" || chosen === "dark") {
            document.documentElement.dataset.theme = chosen;
        }
    } catch (blocked) {
        // Storage is off: the system's theme holds.
    }
})();
