// Draws the page's figures as SVG from the JSON in the page, without loading anything else.
//
// A figure consists of a form of controls, a drawing and a readout. The drawing depends only on the form, the width and
// the theme, and is redrawn when one of them changes. Families differ in colour and marker, depths in shade. Training
// errors are dashed and validation errors are dotted, both with hollow markers, so that no information is conveyed by
// colour alone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const THEMES = { // shades range from a fraction `pale` towards the page to a fraction `full` towards `deep`
    light: {
      page: "#ffffff", text: "#1c1c1c", soft: "#666666", grid: "#e8e8e8",
      deep: "#000000", pale: 0.4, full: 0.4,
    },
    dark: {
      page: "#17181a", text: "#e4e4e4", soft: "#a0a0a0", grid: "#303236",
      deep: "#ffffff", pale: 0.05, full: 0.6,
    },
  };
  const MARKERS = [ // paths around 0, 0
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.5-3.5h7v7h-7z", "M0-5L4.5 0L0 5L-4.5 0z", "M0-4.8L4.6 3.6h-9.2z",
    "M0 4.8L4.6-3.6h-9.2z", "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z", "M-4.4-1.6h8.8l-2.6 5.6h-3.6z",
  ];
  const ERRORS = { // the errors over iterations, and the dashes of their lines
    train: { name: "training", dash: "5 3" },
    validation: { name: "validation", dash: "1.5 2.5" },
    test: { name: "test", dash: "" },
  };
  const validated = data.runs.some((run) => run.validation);
  const ROWS = 10; // maximum in a readout
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (dark.matches ? THEMES.dark : THEMES.light);

  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const number = (value) => (value >= 0.1 || value < 0.0005 ? value.toFixed(2) : String(+value.toPrecision(2)));
  const short = (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : String(value));

  // Math.min(...values) fails for 100,000 values.
  const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

  function mix(colour, target, share) {
    const parts = [1, 3, 5].map((at) => [colour, target].map((c) => parseInt(c.slice(at, at + 2), 16)));
    return "#" + parts.map(([a, b]) => Math.round(a + (b - a) * share).toString(16).padStart(2, "0")).join("");
  }

  // Return the contrast ratio of WCAG 2, which requires 3 for graphics.
  function contrast(a, b) {
    const [dark, light] = [a, b].map((colour) => [1, 3, 5]
      .map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0)).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }

  // Return the shade of a family at a depth. Deeper nets have more contrast with the page, and all have enough. Black
  // is replaced by a colour near the text's, which is visible on a dark page as well.
  function shade(family, depth, theme) {
    const name = data.colours[family % data.colours.length];
    const colour = name === "#000000" ? mix(theme.text, theme.page, 0.3) : name;
    const mixed = (share) => (share > 0 ? mix(colour, theme.page, share) : mix(colour, theme.deep, -share));
    let pale = theme.pale;
    while (pale > -theme.full && contrast(mixed(pale), theme.page) < 3.05) pale -= 0.02;
    const last = data.depths.length - 1;
    const at = data.depths.indexOf(depth) / last;
    return mixed(last && depth !== null ? pale - (pale + theme.full) * at : Math.min(pale, 0));
  }

  function marker(x, y, line, theme, size = 1) {
    const at = `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${size})`;
    const path = MARKERS[(line.family + Math.floor(line.family / MARKERS.length)) % MARKERS.length];
    const fill = line.dash ? theme.page : line.colour;
    const style = `fill="${fill}" stroke="${line.colour}" stroke-width="1.2"`;
    return `<path class="marker" d="${path}" transform="${at}" ${style}/>`;
  }

  function swatch(line, theme) {
    const dash = line.dash ? ` stroke-dasharray="${line.dash}"` : "";
    const path = `<path d="M1 6h28" stroke="${line.colour}" stroke-width="2"${dash}/>`;
    const middle = line.family === undefined ? "" : marker(15, 6, line, theme);
    return `<svg class="swatch" width="30" height="12" aria-hidden="true">${path}${middle}</svg>`;
  }

  // Contents of the figures -------------------------------------------------------------------------------------------

  // Return the mean, sample standard deviation and range of values over seeds, at x.
  function summarize(x, values) {
    const n = values.length;
    const mean = values.reduce((a, b) => a + b, 0) / n;
    const sd = n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : null;
    return { x, y: mean, sd, n, values, low: least(values), high: most(values) };
  }

  // Return the points of the runs' mean curve.
  function meanCurve(runs, error) {
    const errors = new Map();
    const drawn = runs.filter((each) => each[error]);
    for (const run of drawn) {
      run.step.forEach((step, i) => errors.set(step, [...(errors.get(step) || []), run[error][i]]));
    }
    const common = [...errors].filter(([, values]) => values.length === drawn.length);
    return common.sort((a, b) => a[0] - b[0]).map(([step, values]) => summarize(step, values));
  }

  // Return the selected families, with their runs of some depths.
  function selected(choice, depths) {
    return choice.getAll("family").map(Number).map((family) => ({
      family, label: data.families[family],
      runs: data.runs.filter((run) => run.family === family && depths.includes(run.depth)),
    })).filter(({ runs }) => runs.length);
  }

  // Return the drawing of errors over iterations, with one panel per family or one for all.
  function curves(choice, theme) {
    const apart = choice.get("panels") === "apart";
    const panels = selected(choice, choice.getAll("depth").map(Number)).map(({ label, family, runs }) => {
      const lines = [];
      for (const depth of new Set(runs.map((run) => run.depth))) {
        const ofDepth = runs.filter((run) => run.depth === depth);
        const errors = choice.getAll("error").filter((error) => ofDepth.some((run) => run[error]));
        for (const error of errors) {
          const { name: kind, dash } = ERRORS[error];
          const style = { family, error, dash, colour: shade(family, depth, theme) };
          const name = apart ? `${depth} layers` : `${label} ${depth}`;
          const end = error === errors.at(-1) ? String(depth) : "";
          if (choice.get("seeds") === "mean") {
            const points = meanCurve(ofDepth, error);
            lines.push({ ...style, name: `${name}, ${kind}`, points, end, band: end !== "" });
            continue;
          }
          for (const run of ofDepth) {
            const line = { name: `${name}, seed ${run.seed}, ${kind}`, points: meanCurve([run], error), thin: true };
            lines.push({ ...style, ...line, end: run === ofDepth[0] ? end : "" });
          }
        }
      }
      return { title: label, lines };
    });
    return {
      panels: apart ? panels : [{ title: "", lines: panels.flatMap((panel) => panel.lines) }],
      log: choice.get("axis") === "log",
      late: true, // cut off the large errors of the first steps, as in the paper
      x: "iterations", y: "error (%)", at: (x) => `iteration ${x.toLocaleString("en")}`,
    };
  }

  // Return the drawing of final errors against depth: mean, standard deviation and all seeds.
  function finals(choice, theme) {
    const error = choice.get("final");
    const lines = selected(choice, data.depths).map(({ label, family, runs }, i, all) => {
      const depths = [...new Set(runs.map((run) => run.depth))];
      return {
        name: label, family, colour: shade(family, null, theme), dots: true, aside: (i + 0.5) / all.length - 0.5,
        points: depths.map((depth) =>
          summarize(depth, runs.filter((run) => run.depth === depth).map((run) => run[error]))),
      };
    });
    return {
      panels: [{ title: "", lines }], log: choice.get("axis") === "log", ticks: data.depths,
      x: "depth (weighted layers)", y: error === "train_final" ? "final training error (%)" : "final test error (%)",
      at: (x) => `${x} layers`,
    };
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  function linearTicks(top, count) {
    const rough = top / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => +(i * step).toPrecision(6));
  }

  // Return the vertical axis. On a logarithmic one, 0 is drawn at the lower edge, and `zeros` counts such values.
  function vertical(drawing) {
    const lines = drawing.panels.flatMap((panel) => panel.lines);
    const all = lines.flatMap((line) => line.points);
    if (drawing.log) {
      const positive = all.flatMap((p) => [p.y, ...p.values]).filter((value) => value > 0);
      const top = Math.max(most(positive), 1e-3) * 1.3;
      const lowest = Math.min(least(positive), top / 10);
      const bottom = all.some((p) => p.low <= 0) ? lowest / 3 : lowest / 1.3;
      const factors = top / bottom > 300 ? [1] : [1, 2, 5];
      const ticks = [...Array(12).keys()].flatMap((i) => factors.map((f) => +(f * 10 ** (i - 8)).toPrecision(1)));
      const values = lines.flatMap((line) => line.points.flatMap((p) => (line.dots ? p.values : [p.y])));
      return {
        zeros: values.filter((y) => y <= 0).length,
        share: (y) => Math.log(Math.max(y, bottom) / bottom) / Math.log(top / bottom),
        ticks: [...ticks.filter((y) => y >= lowest / 1.3 && y <= top), ...(bottom < lowest / 2 ? [0] : [])],
      };
    }
    const late = (line) => line.points.filter((p) => 2 * p.x >= line.points.at(-1).x);
    const bounds = drawing.late
      ? lines.flatMap(late).map((p) => 1.35 * p.high)
      : all.map((p) => 1.05 * Math.max(p.high, p.y + p.sd));
    const top = Math.min(100, Math.max(most(bounds), drawing.late ? 5 : 0.1));
    return { share: (y) => (y + 0.01 * top) / (1.01 * top), ticks: linearTicks(top, 5) };
  }

  // Return the SVG of a drawing, and the positions of its panels for the readout.
  function draw(drawing, width, theme, legend) {
    const { panels } = drawing;
    const columns = Math.max(1, Math.min(panels.length, 3, Math.floor(width / 270)));
    const cell = width / columns;
    const height = panels.length > 1 ? 250 : Math.max(280, Math.min(430, width * 0.5));
    const margin = { left: 46, right: drawing.ticks ? 14 : 26, top: panels.length > 1 ? 38 : 14, bottom: 46 };
    const axis = vertical(drawing);
    const text = (x, y, content, attributes = "") =>
      `<text x="${x}" y="${y}" fill="${theme.soft}" ${attributes}>${escape(content)}</text>`;
    let svg = "";
    const positions = panels.map(({ title, lines }, i) => {
      const left = (i % columns) * cell + margin.left;
      const top = Math.floor(i / columns) * height + margin.top;
      const wide = cell - margin.left - margin.right;
      const high = height - margin.top - margin.bottom;
      const xs = lines.flatMap((line) => line.points.map((p) => p.x));
      const [from, to] = [drawing.ticks ? least(xs) : 0, most(xs)]; // up to the end of the panel's longest run
      const pad = drawing.ticks ? Math.max((to - from) * 0.04, 1) : 0;
      const spread = Math.min(5 * lines.length, 0.06 * wide); // of the families at one depth
      const perUnit = wide / (to - from + 2 * pad || 1);
      const toX = (x, line) => left + (x - from + pad) * perUnit + spread * (line?.aside || 0);
      const toY = (y) => top + high * (1 - axis.share(y));
      const path = (points, line) =>
        `M${points.map(([x, y]) => `${toX(x, line).toFixed(1)} ${toY(y).toFixed(1)}`).join("L")}`;
      if (title) {
        const room = Math.floor(wide / 6.4);
        const cut = title.length > room ? `${title.slice(0, room - 1)}…` : title;
        svg += text(left, top - 14, cut, 'font-weight="600"');
      }
      for (const y of axis.ticks) {
        svg += `<path d="M${left} ${toY(y).toFixed(1)}h${wide}" stroke="${theme.grid}"/>`;
        svg += text(left - 6, (toY(y) + 4).toFixed(1), short(y), 'text-anchor="end"');
      }
      let taken = -Infinity;
      for (const x of drawing.ticks || linearTicks(to, wide / 70)) {
        if (toX(x) - taken < 22 || x > to) continue;
        taken = toX(x);
        svg += `<path d="M${taken.toFixed(1)} ${top + high}v4" stroke="${theme.soft}"/>`;
        svg += text(taken.toFixed(1), top + high + 17, short(x), 'text-anchor="middle"');
      }
      svg += `<path d="M${left} ${top}v${high}h${wide}" fill="none" stroke="${theme.soft}"/>`;
      svg += text(left + wide / 2, top + high + 35, drawing.x, 'text-anchor="middle"');
      if (i % columns === 0) {
        const turned = `translate(${left - 36} ${top + high / 2}) rotate(-90)`;
        svg += text(0, 0, drawing.y, `text-anchor="middle" transform="${turned}"`);
      }
      const clip = `clip-${drawing.name}-${i}`;
      const frame = `x="${left}" y="${top - 6}" width="${wide + 8}" height="${high + 12}"`;
      svg += `<clipPath id="${clip}"><rect ${frame}/></clipPath>`;
      svg += `<g clip-path="url(#${clip})" fill="none" stroke-linejoin="round">`;
      for (const line of lines) {
        const { points, colour } = line;
        if (line.band && points.some((p) => p.n > 1)) {
          const around = [...points.map((p) => [p.x, p.high]), ...points.map((p) => [p.x, p.low]).reverse()];
          svg += `<path d="${path(around)}z" fill="${colour}" opacity="0.12"/>`;
        }
        const style = `stroke="${colour}" stroke-width="${line.thin || line.dash ? 1.2 : 2}"`;
        const dash = line.dash ? `stroke-dasharray="${line.dash}"` : "";
        svg += `<path class="line" d="${path(points.map((p) => [p.x, p.y]), line)}" ${style} ${dash}/>`;
        for (const p of line.dots ? points : []) {
          if (p.sd) svg += `<path d="${path([[p.x, Math.max(p.y - p.sd, 0)], [p.x, p.y + p.sd]], line)}" ${style}/>`;
          for (const y of p.values) {
            const at = `cx="${toX(p.x, line).toFixed(1)}" cy="${toY(y).toFixed(1)}"`;
            svg += `<circle ${at} r="2.5" fill="${theme.page}" stroke="${colour}"/>`;
          }
        }
        const every = line.dots ? 1 : Math.ceil(points.length / 4);
        points.forEach((p, j) => {
          const marked = j % every === line.family % every || j === points.length - 1;
          if (marked) svg += marker(toX(p.x, line), toY(p.y), line, theme, line.dots ? 1.1 : line.thin ? 0.6 : 0.85);
        });
      }
      svg += "</g>";
      const ends = lines.filter((line) => line.end).map((line) => {
        const last = line.points.at(-1);
        return { line, x: toX(last.x) + 7, y: toY(last.y) + 4 };
      });
      ends.sort((a, b) => a.x - b.x || b.y - a.y);
      ends.forEach((end, j) => { // moved upwards if it would cover the previous one
        if (j && end.x === ends[j - 1].x) end.y = Math.min(end.y, ends[j - 1].y - 11);
      });
      for (const { line, x, y } of ends.length <= 14 ? ends : []) {
        const at = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-size="10.5"`;
        svg += `<text class="end" ${at} fill="${line.colour}">${line.end}</text>`;
      }
      const steps = [...new Set(lines.flatMap((line) => line.points.map((p) => p.x)))].sort((a, b) => a - b);
      return { title, left, top, wide, high, toX, toY, lines, steps };
    });
    let tall = Math.ceil(panels.length / columns) * height;
    if (axis.zeros) {
      const values = axis.zeros === 1 ? "1 value of 0 is" : `${axis.zeros.toLocaleString("en")} values of 0 are`;
      svg += text(margin.left, tall + 8, `${values} drawn at the lower edge`, 'class="zeros"');
      tall += 20;
    }
    if (legend) {
      let x = margin.left;
      for (const line of legend) {
        const needs = 44 + 6.6 * line.name.length;
        if (x + needs > width && x > margin.left) [x, tall] = [margin.left, tall + 20];
        svg += `<g transform="translate(${x} ${tall})">${swatch(line, theme)}${text(36, 10, line.name)}</g>`;
        x += needs;
      }
      tall += 24;
      if (data.title) {
        const bold = `font-weight="600" font-size="${Math.min(15, 1500 / data.title.length)}"`;
        svg = `${text(margin.left, 22, data.title, bold)}<g transform="translate(0 28)">${svg}</g>`;
        tall += 28;
      }
      svg = `<rect width="${width}" height="${tall}" fill="${theme.page}"/>${svg}`;
    }
    const size = `width="${width}" height="${tall}" viewBox="0 0 ${width} ${tall}"`;
    const font = 'font-family="system-ui, sans-serif" font-size="12"';
    return { positions, svg: `<svg ${size} ${font}>${svg}<g class="cursor"></g></svg>` };
  }

  // Interaction -------------------------------------------------------------------------------------------------------

  const families = ["checkbox", "family", "Families", data.families.map((label, i) => [i, label])];
  const [together, apart] = [["one", "one"], ["apart", "by family"]];
  const axes = ["radio", "axis", "Axis", [["linear", "linear"], ["log", "logarithmic"]]];
  const FIGURES = {
    depth: {
      of: finals,
      controls: [families, ["radio", "final", "Error", [["train_final", "training"], ["test_final", "test"]]], axes],
    },
    curves: {
      of: curves,
      controls: [
        families,
        ["checkbox", "depth", "Depth", data.depths.map((depth) => [depth, depth])],
        ["checkbox", "error", "Error", Object.entries(ERRORS).map(([error, { name }]) => [error, name])
          .filter(([error]) => validated || error !== "validation")],
        ["radio", "seeds", "Seeds", [["mean", "mean and range"], ["each", "each"]]],
        axes,
        ["radio", "panels", "Panels", data.families.length > 3 ? [apart, together] : [together, apart]],
      ],
    },
  };

  function figure(name, { of, controls }) {
    const root = document.querySelector(`[data-figure=${name}]`);
    const [form, canvas, readout] = ["form", ".canvas", ".readout"].map((part) => root.querySelector(part));
    form.innerHTML = controls.map(([type, field, legend, options]) => {
      const labels = options.map(([value, label], i) => {
        const checked = type === "checkbox" || i === 0 ? "checked" : "";
        const input = `<input type="${type}" name="${field}" value="${value}" ${checked}>`;
        return `<label>${input}<span class="key" data-key="${field}-${value}"></span>${escape(label)}</label>`;
      });
      return `<fieldset><legend>${legend}</legend>${labels.join("")}</fieldset>`;
    }).join("");
    let width = 0;
    let positions = [];
    let drawing;
    let selection = null; // panel and step of the readout

    const drawn = (theme) => ({ ...of(new FormData(form), theme), name });

    function redraw() {
      width = canvas.clientWidth;
      if (!width) return; // hidden in print
      drawing = drawn(theme());
      const empty = !drawing.panels.some((panel) => panel.lines.length);
      canvas.querySelector(".drawing").innerHTML = empty ? "<p>Nothing is selected.</p>" : "";
      positions = [];
      if (!empty) {
        const result = draw(drawing, width, theme());
        canvas.querySelector(".drawing").innerHTML = result.svg;
        positions = result.positions;
      }
      for (const key of form.querySelectorAll(".key")) key.innerHTML = keyOf(...key.dataset.key.split("-"));
      hide();
    }

    function keyOf(field, value) {
      const grey = data.colours.indexOf("#000000");
      if (field === "family") return swatch({ family: +value, colour: shade(+value, null, theme()) }, theme());
      if (field === "depth") return swatch({ colour: shade(grey, +value, theme()) }, theme());
      if (field === "error") return swatch({ colour: theme().text, dash: ERRORS[value].dash }, theme());
      return "";
    }

    function hide() {
      selection = null;
      readout.hidden = true;
      const cursor = canvas.querySelector(".cursor");
      if (cursor) cursor.innerHTML = "";
    }

    // Show the values at a step of a panel; if there are too many, those nearest to y.
    function show(panel, step, y) {
      const { title, left, top, wide, high, toX, toY, lines, steps } = positions[panel];
      selection = { panel, step };
      const x = steps[step];
      const all = lines.map((line) => ({ line, p: line.points.find((p) => p.x === x) })).filter(({ p }) => p);
      const distance = ({ p }) => (y === null ? 0 : Math.abs(toY(p.y) - y));
      const near = [...all].sort((a, b) => distance(a) - distance(b)).slice(0, ROWS);
      const rows = [...near].sort((a, b) => b.p.y - a.p.y);
      const unit = rows.some(({ p }) => p.n > 1) ? "mean (s.d.) over seeds, %" : "%";
      const cells = rows.map(({ line, p }) => {
        const nearest = y !== null && line === near[0].line ? 'class="nearest"' : "";
        const sd = p.sd === null ? "" : `(${number(p.sd)})`;
        const name = `<td>${swatch(line, theme())}</td><td>${escape(line.name)}</td>`;
        return `<tr ${nearest}>${name}<td>${number(p.y)}</td><td>${sd}</td></tr>`;
      });
      const where = `${title ? `${escape(title)}, ` : ""}${drawing.at(x)}`;
      const more = all.length - rows.length;
      readout.innerHTML = `<table><caption>${where} <small>${unit}</small></caption>${cells.join("")}</table>${
        more ? `<small>and ${more} more</small>` : ""}`;
      readout.hidden = false;
      const right = toX(x) - left > wide / 2;
      readout.style.left = right ? "auto" : `${toX(x) + 14}px`;
      readout.style.right = right ? `${width - toX(x) + 14}px` : "auto";
      readout.style.top = `${top + 4}px`;
      const inside = rows.filter(({ p }) => toY(p.y) >= top);
      canvas.querySelector(".cursor").innerHTML =
        `<path d="M${toX(x)} ${top}v${high}" stroke="${theme().soft}" stroke-dasharray="2 2"/>` +
        inside.map(({ line, p }) => marker(toX(x, line), toY(p.y), line, theme(), 1.15)).join("");
    }

    function point(event) {
      const box = canvas.querySelector(".drawing svg")?.getBoundingClientRect();
      if (!box) return;
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const panel = positions.findIndex(({ left, top, wide, high, steps }) =>
        steps.length && x > left - 12 && x < left + wide + 12 && y > top - 12 && y < top + high + 12);
      if (panel < 0) {
        hide();
        return;
      }
      const distances = positions[panel].steps.map((step) => Math.abs(positions[panel].toX(step) - x));
      show(panel, distances.indexOf(least(distances)), y);
    }

    function press(event) {
      if (event.key === "Escape") hide();
      const { panel, step } = selection || { panel: 0, step: -1 };
      const to = {
        ArrowLeft: [panel, step - 1], ArrowRight: [panel, step + 1],
        ArrowUp: [panel - 1, step], ArrowDown: [panel + 1, step],
      }[event.key];
      const last = to && positions[to[0]] ? positions[to[0]].steps.length - 1 : -1;
      if (last < 0) return; // let the page scroll
      event.preventDefault();
      show(to[0], Math.max(0, Math.min(to[1], last)), null);
    }

    for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, point);
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    canvas.addEventListener("keydown", press);
    canvas.addEventListener("blur", hide);
    form.addEventListener("change", redraw);
    dark.addEventListener("change", redraw);
    new ResizeObserver(() => {
      if (canvas.clientWidth !== width) redraw(); // ignores the height, which changes with the readout
    }).observe(canvas);
    redraw();

    // Save the current view in light colours, with a legend.
    function save(kind) {
      const light = THEMES.light;
      const view = drawn(light);
      const lines = view.panels.flatMap((panel) => panel.lines);
      if (!lines.length) return;
      const families = [...new Set(lines.map((line) => line.family))];
      const legend = families.map((family) => (
        { name: data.families[family], family, colour: shade(family, null, light) }));
      for (const error of name === "curves" ? new Set(lines.map((line) => line.error)) : []) {
        legend.push({ ...ERRORS[error], colour: light.text });
      }
      const holder = document.createElement("div");
      holder.innerHTML = draw(view, 900, light, legend).svg;
      const svg = new XMLSerializer().serializeToString(holder.firstChild);
      if (kind === "svg") {
        download(new Blob([svg], { type: "image/svg+xml" }), kind);
        return;
      }
      const image = new Image();
      image.onload = () => {
        const bitmap = document.createElement("canvas");
        [bitmap.width, bitmap.height] = [2 * image.width, 2 * image.height];
        bitmap.getContext("2d").drawImage(image, 0, 0, bitmap.width, bitmap.height);
        bitmap.toBlob((blob) => download(blob, kind));
      };
      image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`;
    }

    function download(blob, kind) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${data.study}-${name}.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    for (const button of root.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => save(button.dataset.save));
    }
  }

  document.documentElement.classList.add("live");
  for (const [name, parts] of Object.entries(FIGURES)) figure(name, parts);
})();
