"""The page's theme, style sheet, and a script that fixes accessibility problems of Gradio."""

from gradio.themes import Base

CSS = """
.studio-status { min-height: 1.5em; }
.studio-status progress { display: block; width: 100%; height: 0.6em; margin-top: 0.25em; }
.studio-error { padding: 0.5em 0.75em; border-left: 4px solid #b91c1c; }
.studio-ready:has(.studio-status:empty) { display: none; }
.studio-picture img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.studio-images .grid-wrap { min-height: 0; height: auto; max-height: none; overflow: visible; }
.studio-images img { image-rendering: pixelated; }
.dark { --color-accent: var(--primary-400); }
.gradio-container { max-width: 1400px !important; }
"""

# Gradio 6 has a hidden copy of the tabs, to measure them, and its buttons can get the keyboard's focus. It
# also labels empty images without a role, gives pictures no text (it is their caption, or the label of their
# field), and on a busy machine sometimes gives the page no title. The script runs at every change, because
# Gradio makes all of them again.
HEAD = """
<script>
(() => {
  const title = window.gradio_config?.title;
  const fix = () => {
    if (title && !document.title) document.title = title;
    for (const copy of document.querySelectorAll('.tab-container[aria-hidden="true"]')) {
      copy.inert = true;
      for (const button of copy.querySelectorAll('button')) button.tabIndex = -1;
    }
    for (const empty of document.querySelectorAll('div[aria-label="Empty value"]:not([role])')) {
      empty.setAttribute('role', 'img');
    }
    for (const picture of document.querySelectorAll('img:not([alt]), img[alt=""], img[data-named]')) {
      picture.dataset.named = '';  // by us: the caption may come later
      const caption = picture.parentElement.querySelector('.caption-label');
      const label = picture.closest('.block')?.querySelector('[data-testid="block-label"]');
      picture.alt = (caption ?? label)?.textContent.trim() ?? '';
    }
  };
  fix();
  new MutationObserver(fix).observe(document.documentElement, {childList: true, subtree: true});
})();
</script>
"""


def theme() -> Base:
    """Plain, with fonts of the system, and with enough contrast for small text."""
    return Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
