// Before the first paint: the theme that was chosen here, so that the page does not flash. Not a module: those come late.
document.documentElement.dataset.theme = localStorage.getItem("vl2-theme") ?? "auto";
