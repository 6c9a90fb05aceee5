// Formulas of pages are marked by the class arithmatex; those of the notebook stand between dollars in its text cells.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"], ["$", "$"]],
    displayMath: [["\\[", "\\]"], ["$$", "$$"]],
    processEscapes: true,
  },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex|jp-RenderedMarkdown" },
};
