// A picture as large as the window allows, to look at and to select a region of.

import { $, download } from "./dom.js";
import { pictureFigure } from "./figure.js";
import { withBoxes } from "./save.js";
import { regionSelector } from "./region.js";
import { t } from "./texts.js";

/** `onAsk(kind, region)` as in region.js. */
export function openViewer(picture, { objects = [], onAsk }) {
  const dialog = $("viewer");
  const figure = pictureFigure(picture, { label: picture.name });
  const selector = regionSelector(figure, picture, {
    withTouch: true,
    onChange: (region) => ($("viewer-how").textContent = region ? t.region(...region) : t.selectHow),
    onAsk: (kind, region) => {
      dialog.close();
      onAsk(kind, region);
    },
  });
  figure.show(objects);
  $("viewer-heading").textContent = picture.name;
  $("viewer-how").textContent = t.selectHow;
  $("stage").replaceChildren(figure.node);
  $("viewer-select").onclick = selector.start;
  $("viewer-save").onclick = async () => download(await withBoxes(picture, objects), `${picture.name}.png`);
  $("viewer-close").onclick = () => dialog.close();
  dialog.showModal();
}
