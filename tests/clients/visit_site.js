// Goes through the atlas as a reader does; what it finds becomes the page. test_site.py has ROUTES and LOADS.
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
function faults() {
  const found = [];
  const text = document.getElementById("main").textContent;
  // findings speak of NaN themselves
  const words = location.hash.startsWith("#/rule") ? ["undefined", "[object"] : ["undefined", "NaN", "[object", "Infinity"];
  if (!location.hash.startsWith("#/rule") && text.includes("`")) found.push("says a backtick");
  for (const word of words) if (text.includes(word)) found.push(`says ${word}`);
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  for (const e of document.querySelectorAll("#main input, #main select")) if (!e.closest("label")) found.push("a control without a label");
  for (const e of document.querySelectorAll("button, a[href]")) if (!(e.textContent.trim() || e.getAttribute("aria-label"))) found.push("a control without a name");
  for (const e of document.querySelectorAll('[role="img"]')) if (!e.getAttribute("aria-label") && !e.querySelector("title")) found.push("a picture without words");
  for (const e of document.querySelectorAll("#main a[href^='#/']")) if (!Object.hasOwn(PAGES, e.getAttribute("href").slice(2).split("/")[0])) found.push(`a link to nowhere: ${e.href}`);
  return found;
}
async function visit() {
  for (const route of ROUTES) {
    location.hash = route;
    await wait(120);
    said.pages[route] = { faults: faults(), title: document.title, text: document.getElementById("main").innerText.slice(0, 9000),
      wide: document.documentElement.scrollWidth > innerWidth };
  }
  said.network = performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("file:"));
  location.hash = "#/models"; await wait(80);
  const search = document.querySelector("#main input[type=search]");
  search.value = "scout"; search.dispatchEvent(new Event("input")); await wait(50);
  said.search = [...document.querySelectorAll("#main tbody tr")].map((r) => r.cells[0].textContent);
  said.permalink = location.hash;
  location.hash = "#/models/?generation=4&sort=params&down=true"; await wait(80);
  said.linked = [...document.querySelectorAll("#main tbody tr")].map((r) => r.cells[0].textContent);
  location.hash = "#/models"; await wait(80);
  document.querySelectorAll("#main th button")[2].click(); await wait(50);
  said.sorted = [...document.querySelectorAll("#main tbody tr")].map((r) => r.cells[0].textContent);
  const before = document.documentElement.dataset.theme;
  document.getElementById("theme").click(); await wait(50);
  said.themes = [before, document.documentElement.dataset.theme];
  said.cost = LOADS.map(([id, load]) => { const c = cost(by(id).wiring, load); return [c.weights, c.cache, c.prefill, c.decode]; });
  document.title = "visited";
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { id: "said", textContent: JSON.stringify(said) }));
}
visit();
