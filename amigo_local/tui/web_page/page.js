// Keys go to the terminal at once, without a click into it first.
new MutationObserver(() => document.querySelector(".xterm-helper-textarea")?.focus()).observe(document.documentElement, {
  subtree: true,
  attributeFilter: ["class"],
});
