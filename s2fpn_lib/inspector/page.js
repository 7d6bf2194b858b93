// Starts the viewer in the exported page.
const byId = (id) => document.getElementById(id);

async function start() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (character) => character.charCodeAt(0));
  const viewer = new Viewer(byId("viewer"));
  window.viewer = viewer;
  viewer.show(await openScene(packed));
  byId("status").replaceChildren("Click on the picture, or move with the arrow keys (with Shift: ten pixels). ",
    button("Download the picture", "This view as a PNG file", async () =>
      downloadNow(await pictureOf(viewer), pictureName(viewer))));
}
start().catch((error) => {
  byId("status").textContent = `This browser cannot show the page (${error.message}): open it in a newer one. Still pictures are below.`;
  byId("status").setAttribute("role", "alert");
  byId("stills").open = true;
});
