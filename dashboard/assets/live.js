// What a browser has to do by itself: refresh while someone looks, name the tab, switch the theme, leave when signed out.
(function () {
    "use strict";

    function systemTheme() {
        return window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    }

    var ask = window.fetch.bind(window);
    window.fetch = function () {
        return ask.apply(null, arguments).then(function (answer) {
            // The key was revoked or the session ended: the page's own address leads to the login page and back.
            if (answer.status === 401 && new URL(answer.url, window.location.href).origin === window.location.origin) {
                window.location.reload();
            }
            return answer;
        });
    };

    document.addEventListener("keydown", function (pressed) {
        if (pressed.key === "Escape" && window.location.hash.indexOf("#why") === 0) {
            window.location.hash = "closed";
        }
    });

    window.dash_clientside = Object.assign({}, window.dash_clientside, {
        meterbridge: {
            tick: function (intervals) {
                return document.hidden ? window.dash_clientside.no_update : intervals;
            },
            title: function () {
                window.requestAnimationFrame(function () {
                    var heading = document.querySelector("main h1");
                    document.title = heading ? heading.textContent + " · meterbridge" : "meterbridge";
                });
                return window.dash_clientside.no_update;
            },
            theme: function () {
                var root = document.documentElement;
                var next = (root.dataset.theme || systemTheme()) === "dark" ? "light" : "dark";
                root.dataset.theme = next;
                try {
                    window.localStorage.setItem("meterbridge-theme", next);
                } catch (blocked) {
                    // Storage is off: the choice lasts as long as the page.
                }
                return window.dash_clientside.no_update;
            }
        }
    });
})();
