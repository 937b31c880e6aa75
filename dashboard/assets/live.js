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
                // What somebody is filling in stays under their hands.
                var busy = document.querySelector("main details[open] form") || (document.activeElement && document.activeElement.closest("main form"));
                return document.hidden || busy ? window.dash_clientside.no_update : intervals;
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

// Charts: a click on a bar, a point or a line opens the drawer on the figure that it draws. The tables below say the same to the keyboard.
(function () {
    "use strict";

    function way(chart, mark) {
        var meta = chart.data[mark.curveNumber].meta;
        var own = meta && meta.why ? meta.of[mark.pointNumber] : null;
        return own === null || own === undefined ? null : meta.why.replace("{}", function () { return own; });
    }

    // A hover over several bars at once tells all of them: the one under the pointer is meant, else the nearest.
    function distance(chart, mark, at) {
        var earlier = chart.data.slice(0, mark.curveNumber).filter(function (trace) { return trace.type === "bar" && trace.visible !== "legendonly"; });
        var bars = chart.querySelectorAll(".barlayer > .trace")[earlier.length];
        var shape = bars && bars.querySelectorAll(".point")[mark.pointNumber];
        var box = shape && shape.getBoundingClientRect();
        if (!box || !(box.width && box.height)) {
            return Infinity;
        }
        return Math.max(0, box.left - at.clientX, at.clientX - box.right) + Math.max(0, box.top - at.clientY, at.clientY - box.bottom);
    }

    function clicked(chart, told) {
        var nearest = null;
        told.points.forEach(function (mark) {
            var address = way(chart, mark);
            var far = told.points.length > 1 ? distance(chart, mark, told.event) : 0;
            if (address && far < Infinity && (nearest === null || far < nearest.far)) {
                nearest = { address: address, far: far };
            }
        });
        if (nearest !== null) {
            window.location.hash = nearest.address;
        }
    }

    document.addEventListener("pointerover", function (event) {
        var chart = event.target.closest && event.target.closest(".chart.leads .js-plotly-plot");
        if (chart && chart.on && !chart.meterbridgeLeads) {
            chart.meterbridgeLeads = true;
            chart.on("plotly_click", function (told) { clicked(chart, told); });
        }
    }, true);
})();

// Forms that change something: a fault stands at its field and what was typed stays; a new secret is shown once.
(function () {
    "use strict";

    function clear(form) {
        form.querySelectorAll(".field-fault").forEach(function (line) { line.remove(); });
        form.querySelectorAll("[aria-invalid]").forEach(function (field) { field.removeAttribute("aria-invalid"); });
    }

    function tell(form, said) {
        var field = said.field ? form.querySelector("[name='" + CSS.escape(said.field) + "']") : null;
        var line = document.createElement("span");
        line.className = "field-fault";
        line.setAttribute("role", "alert");
        line.textContent = said.message || "Nothing was changed; try again.";
        ((field && field.closest("label")) || form).appendChild(line);
        if (field) {
            field.setAttribute("aria-invalid", "true");
            field.focus();
        }
    }

    function show(said) {
        var dialog = document.createElement("dialog");
        var label = document.createElement("p");
        var secret = document.createElement("pre");
        var done = document.createElement("button");
        label.textContent = said.label;
        secret.textContent = said.secret;
        done.textContent = "I have kept it";
        dialog.append(label, secret, done);
        done.addEventListener("click", function () { dialog.close(); });
        dialog.addEventListener("close", function () { window.location.assign(said.go); });
        document.body.appendChild(dialog);
        dialog.showModal();
    }

    function close(popped) {
        popped.open = false;
        popped.querySelector("summary").focus();
    }

    document.addEventListener("click", function (event) {
        var popped = event.target.closest && event.target.closest("details.popped[open]");
        // Beside the panel, or on its button.
        if (popped && (event.target === popped || event.target.matches("button.close"))) {
            close(popped);
        }
    });
    document.addEventListener("keydown", function (event) {
        var popped = event.key === "Escape" && document.querySelector("details.popped[open]");
        if (popped) {
            close(popped);
        }
    });

    document.addEventListener("submit", function (event) {
        var form = event.target;
        var asked = event.submitter && event.submitter.getAttribute("formmethod");
        if (form.method !== "post" || asked === "get" || !new URL(form.action).pathname.includes("/act/")) {
            return;
        }
        event.preventDefault();
        clear(form);
        var buttons = form.querySelectorAll("button");
        buttons.forEach(function (button) { button.disabled = true; });
        window.fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "application/json" } })
            .then(function (answer) {
                return answer.json().then(function (said) {
                    if (!answer.ok) {
                        tell(form, said);
                    } else if (said.secret) {
                        show(said);
                    } else {
                        window.location.assign(said.go);
                    }
                });
            })
            .catch(function () { tell(form, { message: "The service did not answer; nothing is known to have changed. Look, then try again." }); })
            .then(function () { buttons.forEach(function (button) { button.disabled = false; }); });
    });
})();
