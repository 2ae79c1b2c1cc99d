const data = JSON.parse(byId("data").textContent);
startTables();
if (data.matches && data.matches.images.length) startMatches(data.matches);
for (const root of document.querySelectorAll(".viewer.detections")) {
  new DetectionViewer(root, data.images[root.dataset.images]);
}
