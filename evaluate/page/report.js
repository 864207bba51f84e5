"use strict";

for (const button of document.querySelectorAll("#summary thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

function sortBy(heading) {
  const body = heading.closest("table").tBodies[0];
  const column = heading.cellIndex;
  const ascending = heading.ariaSort !== "ascending";
  for (const other of heading.parentNode.cells) other.ariaSort = "none";
  heading.ariaSort = ascending ? "ascending" : "descending";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // missing values stay at the end
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return ascending ? order : -order;
  };
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}

const GAIN = 8;

for (const viewer of document.querySelectorAll(".viewer")) {
  const stage = viewer.querySelector(".stage");
  const [reconstruction, original] = ["reconstruction", "original"].map((name) => stage.querySelector("." + name));
  const canvas = stage.querySelector("canvas");
  const toggle = viewer.querySelector(".toggle");
  const versions = [...viewer.querySelectorAll(".numbers")];
  versions[0].dataset.uri = reconstruction.src;

  const divider = stage.querySelector(".divider");
  divider.addEventListener("input", () => stage.style.setProperty("--at", divider.value + "%"));
  divider.dispatchEvent(new Event("input")); // a reloaded page may keep the old value
  const follow = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    divider.value = 100 * (event.clientX - left) / width;
    divider.dispatchEvent(new Event("input"));
  };
  // Some browsers move a slider only by its thumb. Here a drag anywhere on the image moves it.
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    follow(event);
  });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) follow(event);
  });

  toggle.addEventListener("click", async () => {
    const differing = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", differing);
    stage.classList.toggle("differing", differing);
    if (differing) await drawDifference();
    canvas.hidden = !differing;
  });

  viewer.querySelector("select")?.addEventListener("change", async (event) => {
    versions.forEach((numbers, place) => { numbers.hidden = place !== event.target.selectedIndex; });
    reconstruction.src = versions[event.target.selectedIndex].dataset.uri;
    await reconstruction.decode();
    if (!canvas.hidden) await drawDifference();
  });

  async function drawDifference() {
    await Promise.all([original.decode(), reconstruction.decode()]);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = canvas;
    const pixels = (image) => {
      context.drawImage(image, 0, 0, width, height);
      return context.getImageData(0, 0, width, height);
    };
    const before = pixels(original), after = pixels(reconstruction);
    for (let place = 0; place < after.data.length; place++) {
      if (place % 4 !== 3) after.data[place] = GAIN * Math.abs(after.data[place] - before.data[place]);
    }
    context.putImageData(after, 0, 0);
  }
}
