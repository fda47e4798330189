"use strict";
// All text from the data (titles, genres, what an LLM wrote) enters the page as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const { titles, genres, people } = DATA;
const [rank, reg, alpha] = DATA.setting;
const TOP = 10, UP = 5, TILES = 12;
const $ = (id) => document.getElementById(id);

// --- the retriever ------------------------------------------------------------------------------

function half(bits) { // a float16 as a number
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

const bytes = new DataView(Uint8Array.from(atob(DATA.factors), (char) => char.charCodeAt(0)).buffer);
const factors = new Float64Array(bytes.byteLength / 2).map((_, i) => half(bytes.getUint16(2 * i, true)));
const count = factors.length / rank; // movies from this row on have no factor: nobody rated them in training
const factor = (movie) => factors.subarray(movie * rank, (movie + 1) * rank);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);

function add(matrix, vector, weight) { // weight times the outer product of a vector with itself
  for (let i = 0; i < rank; i++)
    for (let j = 0; j < rank; j++) matrix[i * rank + j] += weight * vector[i] * vector[j];
}

const gram = new Float64Array(rank * rank); // of all movies, once
for (let movie = 0; movie < count; movie++) add(gram, factor(movie), 1);

function solve(a, x) { // Gauss, in place; the matrix is positive definite
  for (let k = 0; k < rank; k++) for (let i = k + 1; i < rank; i++) {
    const ratio = a[i * rank + k] / a[k * rank + k];
    for (let j = k; j < rank; j++) a[i * rank + j] -= ratio * a[k * rank + j];
    x[i] -= ratio * x[k];
  }
  for (let i = rank - 1; i >= 0; i--) {
    for (let j = i + 1; j < rank; j++) x[i] -= a[i * rank + j] * x[j];
    x[i] /= a[i * rank + i];
  }
  return x;
}

// The factor of somebody with these ratings: one half step of implicit ALS (Hu, Koren and Volinsky 2008)
// as Spark takes it. A thumb down is a rating of -5: no preference, of which we are as sure.
function foldRatings(rated) {
  const left = gram.slice(), right = new Float64Array(rank);
  let likes = 0;
  for (const [movie, stars] of rated) {
    if (movie >= count) continue;
    const weight = alpha * Math.abs(stars);
    add(left, factor(movie), weight);
    if (stars <= 0) continue;
    likes++;
    factor(movie).forEach((value, i) => { right[i] += (1 + weight) * value; });
  }
  for (let i = 0; i < rank; i++) left[i * rank + i] += reg * likes;
  return solve(left, right);
}

function best(vector, excluded, n) { // equal at five decimals: the lower movieId, as in Python
  const scored = [];
  for (let movie = 0; movie < count; movie++)
    if (!excluded.has(movie)) scored.push([Math.round(dot(vector, factor(movie)) * 1e5), movie]);
  return scored.sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, n).map(([, movie]) => movie);
}

// Mean ranks (Borda). What the LLM never read keeps the retriever's place; ties go to the retriever.
function blend(retriever, llm, weight) {
  const second = new Map(llm.map((movie, place) => [movie, place]));
  const value = (movie, place) =>
    Math.round(((1 - weight) * place + weight * (second.get(movie) ?? place)) * 1e9);
  return retriever.map((movie, place) => [value(movie, place), place, movie])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , movie]) => movie);
}

function ndcg(order, liked) {
  const gain = (place) => 1 / Math.log2(place + 2);
  let got = 0, ideal = 0;
  order.slice(0, 10).forEach((movie, place) => { if (liked.has(movie)) got += gain(place); });
  for (let place = 0; place < Math.min(10, liked.size); place++) ideal += gain(place);
  return ideal ? got / ideal : 0;
}

// --- words and nodes ----------------------------------------------------------------------------

// "Matrix, The (1999)" is The Matrix (1999); names in other languages go, the year stays.
const ARTICLE = /^(.*), (The|A|An|Les?|La|Il|Das|Der|Die|El)( \(.*)$/, OTHER = / \((?!\d{4})[^()]*\)(?=.*\(\d{4})/g;
const named = (movie) => titles[movie].replace(OTHER, "").replace(ARTICLE, "$2 $1$3");
const short = (movie) => named(movie).replace(/ \([^()]*\)/g, "");
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const listed = (words) => words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words.join("");
const way = (climb, least) => climb > least ? "up" : climb < -least ? "down" : "flat";
const highest = (pairs, n) => pairs.sort((a, b) => b[0] - a[0]).slice(0, n).map(([, thing]) => thing);

function make(tag, options = {}, ...children) {
  const space = tag === "svg" || tag === "path" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(options))
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  node.append(...children.filter((child) => child));
  return node;
}

function write(id, text) {
  $(id).textContent = text;
}

function fill(id, ...children) { // and keep the keyboard where it was
  const box = $(id), active = document.activeElement, key = box.contains(active) && active.dataset.key;
  box.replaceChildren(...children);
  if (!key) return;
  const next = box.querySelector(`[data-key="${key}"]`) ?? box.querySelector("button")
    ?? box.closest("section").querySelector("button, input");
  next.focus({ preventScroll: true });
}

const HAND = "M1 7h3v8H1zM5.5 14.2V7.3L8.6.8c1.3 0 2.1.9 2.1 2.1L10.2 6H14c.9 0 1.5.8 1.3 1.7l-1.2 5.9"
  + "c-.2.8-.8 1.4-1.6 1.4H7.2z";

function thumbs(movie, key, act) {
  const button = (kind, stars) => make("button", {
    class: kind, "data-key": `${key}-${kind}`, title: `Thumb ${kind}`,
    "aria-label": `Thumb ${kind}: ${named(movie)}`, onclick: () => act(movie, stars),
  }, make("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, make("path", { d: HAND })));
  return make("div", { class: "thumbs" }, button("up", UP), button("down", -UP));
}

function row(movie, place, act, ...parts) { // of a list that takes thumbs
  return make("li", { "data-movie": movie }, make("span", { class: "rank" }, `${place + 1}`),
    make("div", {}, make("b", {}, named(movie)), " ", ...parts), thumbs(movie, `row-${place}`, act));
}

function chips(id, rated, act) { // what has a thumb, each with a button that takes it back
  fill(id, ...[...rated].map(([movie, stars], i) => make("li", {}, `${stars > 0 ? "Up" : "Down"}: ${named(movie)}`,
    make("button", { "data-key": `back-${i}`, "aria-label": `Take back: ${named(movie)}`,
      onclick: () => act(movie, 0) }, "✕"))));
}

function give(thumbed, movie, stars) {
  if (stars) thumbed.set(movie, stars); else thumbed.delete(movie);
  return `${stars > 0 ? "Thumb up" : stars < 0 ? "Thumb down" : "Taken back"}: ${named(movie)}.`;
}

// --- a recorded person --------------------------------------------------------------------------

for (const person of people) {
  person.known = new Map(person.known);
  person.hidden = new Map(person.hidden);
  person.fan = listed(person.likes.slice(0, 2).map(short));
  person.taste = [person.genres[0] ?? "A bit of everything", ...person.eras.slice(0, 1)].join(", ");
  const claims = person.claims.map(([, claim]) => claim), likes = person.likes.map(named);
  person.words = [person.summary, ...person.genres, ...person.eras, ...claims, ...likes].join(" ").toLowerCase();
}
const state = { person: 0, weight: 1, reading: 0, open: false, thumbs: new Map(), mine: new Map(), page: 0, list: [] };

function drawCards() {
  const wanted = $("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const found = people.filter(({ words }) => wanted.every((word) => words.includes(word)));
  const card = (person) => {
    const box = make("input", { type: "radio", name: "person", value: people.indexOf(person) });
    box.checked = person === people[state.person];
    return make("label", {}, box, make("b", {}, person.fan), make("small", {}, person.taste));
  };
  const part = (name, some) => some.length ? [make("h3", {}, name), ...some.map(card)] : [];
  fill("cards", $("cards").firstElementChild,
    ...part("Ranked with reasons", found.filter(({ core }) => core)),
    ...part("Ranked, with hidden ratings to check", found.filter(({ core }) => !core)));
  const heads = (some) => new Set(some.map(({ id }) => id)).size; // some stand in both parts
  write("count", `${wanted.length ? `${heads(found)} of ` : ""}${heads(people)} people`);
}

function choose(place) {
  const person = people[place], counted = [...person.genres, ...person.eras];
  Object.assign(state, { person: place, reading: 0, open: false, weight: 1, thumbs: new Map() });
  const box = document.querySelector(`#cards [value="${place}"]`);
  box.checked = true;
  const below = box.parentNode.offsetTop - $("cards").scrollTop;
  if (below < 0 || below > $("cards").clientHeight - 60) $("cards").scrollTop = box.parentNode.offsetTop - 40;
  write("name", `A fan of ${person.fan}`);
  write("about", `${person.taste}. ${DATA.simulated ? "Simulated viewer" : "MovieLens user"} ${person.id}, `
    + `${plural(person.count, "known rating")}.`);
  fill("likes", ...person.likes.map((movie) => make("li", {}, named(movie))));
  write("profile", person.summary ? "Profile, written by the language model" : "Taste, by counting");
  write("summary", person.summary || `No profile was asked for this person. ${counted.length
    ? `Often rated, and above this person's own mean: ${listed(counted)}.` : ""}`);
  $("claims").hidden = !person.claims.length;
  const [head, list] = $("claims").children;
  head.textContent = `${plural(person.claims.length, "claim")}, each with the movies it cites`;
  list.replaceChildren(...person.claims.flatMap(([field, claim, why, cited], i, all) => [
    ...all[i - 1]?.[0] === field ? [] : [make("dt", {}, field)],
    make("dd", {}, make(why ? "s" : "b", {}, claim), ` ${cited.map(short).join(", ")}`,
      why && make("small", {}, `Kept out of the ranking prompt: ${why}.`))]));
  drawLists();
}

// The retriever's order with the thumbs folded in, and the list that is shown beside it.
function orders(person) {
  const said = person.orders[state.reading];
  let retriever = person.listed;
  if (state.thumbs.size) {
    const rated = new Map([...person.known, ...state.thumbs]);
    retriever = best(foldRatings(rated), new Set([...rated.keys(), ...person.seen]), retriever.length);
  }
  return { said, retriever, final: blend(retriever, said.order, state.weight) };
}

function drawLists() {
  const person = people[state.person], { said, retriever, final } = orders(person);
  const told = { history: "the last 20 ratings", profile: "the profile" };
  write("asked", `The retriever proposes ${plural(final.length, "movie")} that this person has not rated. The `
    + `language model read ${told[said.by]} and put them in its own order${person.core ? ", with a reason for each"
      : "; it was not asked for reasons"}. Give any movie a thumb, and the retriever thinks again.`);
  fill("readings", ...person.orders.length < 2 ? [] : ["The language model had read",
    ...person.orders.map(({ by }, i) => make("button", {
      "data-key": `by-${i}`, "aria-pressed": i === state.reading,
      onclick: () => { state.reading = i; drawLists(); } }, told[by]))]);
  $("weight").value = state.weight;
  write("weighs", state.weight.toFixed(1));
  $("reveal").parentNode.hidden = !person.hidden.size;
  write("reveal", state.open ? "Hide the hidden ratings" : "Who was right? Reveal the hidden ratings");
  $("judged").hidden = !state.open;
  if (state.open) write("judged", judged(person, said, retriever, final));
  $("thumbed").hidden = !state.thumbs.size;
  chips("given", state.thumbs, thumb);

  const tops = (rows) => new Map([...rows].map((row) => [row.dataset.movie, row.getBoundingClientRect().top]));
  const before = tops($("right").children);
  write("final", { 0: "Retriever, again", 1: "Language model" }[state.weight] ?? "Blend of the two");
  fill("left", ...retriever.map((movie, place) => make("li", { "data-movie": movie },
    make("span", { class: "rank" }, `${place + 1}`), make("div", {}, short(movie)))));
  $("lines").setAttribute("viewBox", `0 0 100 ${100 * final.length}`);
  fill("lines", ...final.map((movie, place) => {
    const was = retriever.indexOf(movie), from = 100 * was + 50, to = 100 * place + 50;
    const d = `M0 ${from} C45 ${from} 55 ${to} 100 ${to}`;
    return make("path", { class: way(was - place, 2), "data-movie": movie, d });
  }));
  fill("right", ...final.map((movie, place) => {
    const climb = retriever.indexOf(movie) - place, kind = way(climb, 0);
    const moved = climb ? `${kind} ${Math.abs(climb)}` : "same place";
    const stars = state.open && person.hidden.get(movie);
    return row(movie, place, thumb, make("span", { class: `move ${kind}` }, moved), " ",
      !person.listed.includes(movie) && make("span", { class: "tag" }, "new"),
      stars && make("span", { class: `tag ${stars >= 4 ? "hit" : ""}` }, `hidden rating: ${stars} ★`),
      make("small", {}, said.reasons[said.order.indexOf(movie)] ?? ""));
  }));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [movie, top] of tops($("right").children)) {
    const by = (before.get(movie) ?? top) - top, node = $("right").querySelector(`[data-movie="${movie}"]`);
    if (by) node.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 250 });
  }
}

function judged(person, said, retriever, final) {
  const liked = new Set([...person.hidden].filter(([, stars]) => stars >= 4).map(([movie]) => movie));
  const score = (order) => ndcg(order, liked).toFixed(2), mean = (ranker) => DATA.measured[ranker].toFixed(3);
  const here = final.filter((movie) => liked.has(movie)).length;
  return `A fifth of this person's ratings was hidden from both. ${plural(liked.size, "movie")} there got 4 stars or `
    + `more, and ${here} of them can be found in this list. NDCG@10 (1: the `
    + `best order, 0: none in the first ten) is ${score(retriever)} for the retriever, ${score(said.order)} for the `
    + `language model and ${score(final)} for the list on the right. One person proves nothing: the mean over 240 `
    + `people is ${mean("its own order")} for the retriever and ${mean("LLM, history")} for the language model that `
    + "read their ratings (notebook 06).";
}

function thumb(movie, stars) {
  const was = orders(people[state.person]).final, said = give(state.thumbs, movie, stars);
  drawLists();
  const fresh = orders(people[state.person]).final.filter((other) => !was.includes(other)).map(named);
  write("status", `${said} New in the list: ${listed(fresh) || "nothing"}.`);
}

function light(event) { // a movie, its line, and where it was
  const movie = event.type !== "pointerleave" && event.target.closest?.("[data-movie]")?.dataset.movie;
  for (const node of document.querySelectorAll("#slope [data-movie]"))
    node.classList.toggle("lit", node.dataset.movie === movie);
}

// --- your own ratings ---------------------------------------------------------------------------

// By tens in popularity, so that each dozen holds very well known movies and others.
const pool = DATA.famous.map((_, i, all) => all[(i * 10) % all.length + Math.floor(i * 10 / all.length)]);

function tile(movie, key) {
  const about = genres[movie].startsWith("(") ? "" : genres[movie].split("|").slice(0, 3).join(", ");
  return make("li", {}, make("div", {}, named(movie), make("small", {}, about)), thumbs(movie, key, rate));
}

function drawOwn() {
  const { mine } = state, rated = mine.size, vector = foldRatings(mine);
  const left = pool.filter((movie) => !mine.has(movie));
  const likes = [...mine.keys()].filter((movie) => mine.get(movie) > 0 && movie < count);
  const excluded = new Set([...mine.keys(), ...likes.length && $("lesser").checked ? DATA.famous : []]);
  const list = likes.length ? best(vector, excluded, TOP)
    : DATA.famous.filter((movie) => !excluded.has(movie)).slice(0, TOP);
  write("progress", rated < 10 ? `${rated} of 10 rated` : `${rated} rated; go on as long as you like`);
  $("goal").value = Math.min(rated, 10);
  fill("tiles", ...left.slice(0, TILES).map((_, i) => tile(left[(state.page * TILES + i) % left.length], `tile-${i}`)));
  $("rated").hidden = !rated;
  chips("mine", mine, rate);
  write("yours", likes.length ? "Your list" : "The list that everybody gets");
  write("how", likes.length ? "The retriever finds your place anew with each thumb. Bars show its scores."
    : rated ? "The retriever learns from likes: until there is one, these are the movies with the most ratings."
      : "These are the movies with the most ratings. Give one thumb up, and the list becomes yours.");
  const score = (movie) => dot(vector, factor(movie)), top = score(list[0]);
  fill("list", ...list.map((movie, place) => {
    const close = highest(likes.map((like) => [cosine(factor(like), factor(movie)), like]), 2).map(short);
    const bar = make("div", { class: "bar", "data-score": score(movie) });
    bar.style.width = `${Math.max(2, 100 * score(movie) / top)}%`;
    const fresh = state.list.length && !state.list.includes(movie);
    return row(movie, place, rate, fresh && make("span", { class: "tag" }, "new"),
      ...likes.length ? [make("small", {}, `nearest of your likes: ${listed(close)}`), bar] : []);
  }));
  state.list = list;
  $("alike").hidden = $("famous").hidden = !likes.length;
  for (const person of people) person.vector ??= foldRatings(person.known);
  const near = highest(people.map((person) => [cosine(vector, person.vector), person]), 3);
  fill("near", ...near.map((person) => make("li", {}, make("button", { onclick: () => visit(person) },
    make("b", {}, person.fan), make("small", {}, person.taste)))));
  drawFound();
}

function visit(person) {
  $("filter").value = "";
  drawCards();
  open("people");
  choose(people.indexOf(person));
  $("tab-people").focus();
}

function rate(movie, stars) {
  const said = give(state.mine, movie, stars);
  drawOwn();
  write("status", `${said} ${plural(state.mine.size, "movie")} rated.`);
}

function drawFound() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean), found = [];
  for (let movie = 0; words.length && movie < count && found.length < 6; movie++)
    if (!state.mine.has(movie) && words.every((word) => named(movie).toLowerCase().includes(word))) found.push(movie);
  fill("found", ...found.map((movie, i) => tile(movie, `found-${i}`)));
}

// --- the frame ----------------------------------------------------------------------------------

const TABS = ["people", "own"], HASHES = ["#choose", "#rate"]; // no ids: a browser scrolls to these
function open(name) {
  for (const tab of TABS) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", tab === name);
    $(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  if (name === "own") drawOwn();
  history.replaceState(null, "", HASHES[TABS.indexOf(name)]);
}

for (const [i, name] of TABS.entries()) {
  $(`tab-${name}`).addEventListener("click", () => open(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    open(TABS[1 - i]);
    $(`tab-${TABS[1 - i]}`).focus();
  });
}
$("filter").addEventListener("input", drawCards);
$("cards").addEventListener("change", (event) => choose(Number(event.target.value)));
$("random").addEventListener("click", () => {
  $("filter").value = "";
  drawCards();
  choose(Math.floor(Math.random() * people.length));
});
$("weight").addEventListener("input", () => { state.weight = Number($("weight").value); drawLists(); });
$("reveal").addEventListener("click", () => { state.open = !state.open; drawLists(); });
for (const kind of ["pointerover", "pointerleave", "focusin"]) $("slope").addEventListener(kind, light);
$("others").addEventListener("click", () => { state.page++; drawOwn(); });
$("find").addEventListener("input", drawFound);
$("lesser").addEventListener("change", drawOwn);
$("simulated").hidden = !DATA.simulated;
$("source").hidden = DATA.simulated;
write("rank", rank);
write("size", count.toLocaleString("en"));
state.person = Math.max(0, people.findIndex(({ id }) => id === 12));
drawCards();
choose(state.person);
open(TABS[Math.max(0, HASHES.indexOf(location.hash))]);
