// A page opened from disk may not read other files: what the search asks for stands in pages.js.
if (location.protocol === "file:") {
  document.write('<script src="_static/pages.js"></script>');
  window.fetch = async (page) => ({ text: () => pages[page.replace(/^\.\/|\.html$/g, "")] });
}
