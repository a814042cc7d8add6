#!/bin/sh
# Pictures of a page in headless Chromium, and checks that no picture is needed for.
#   tests/report/screenshots.sh PAGE.html OUT-DIR [--check]
# Leaves light.png, dark.png, narrow.png (320 px) and paper.pdf; with --check no pictures, only the checks: the page renders,
# nothing is said on the console, nothing is wider than a screen of 320 px, no column so narrow that its cells become tall, no
# letter below 11 px, tables sort. Exits 77 where there is no Chromium.
set -eu
page=$(realpath "$1") out=$2 only_check=${3:-}
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "no chromium here: nothing was looked at" >&2
    exit 77
}
mkdir -p "$out"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

browser() {
    "$chromium" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
        --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars \
        --user-data-dir="$profile" --virtual-time-budget=3000 "$@"
}

# A frame is as narrow as it is told to be, where a window has a least width. The copy has the page's own policy widened by one
# script, which clicks the first head of every table and says in the document what it finds.
probe='<script>addEventListener("load", () => {
  const root = document.documentElement, wide = [...document.querySelectorAll("body *")].filter(
    (e) => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > root.clientWidth + 0.5);
  const heads = [...document.querySelectorAll("table.sortable th button")];
  heads.forEach((head) => head.click());
  const sorted = document.querySelectorAll("th[aria-sort]").length, tables = document.querySelectorAll("table.sortable").length;
  const tall = [...document.querySelectorAll("td, th")].filter((e) => e.getBoundingClientRect().height > 240).length;
  const px = (text) => { const svg = text.ownerSVGElement; return parseFloat(getComputedStyle(text).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width; };
  const small = [...document.querySelectorAll("svg text")].filter((e) => px(e) < 11).length;
  parent.postMessage({ width: root.clientWidth, scrolls: root.scrollWidth, tall, small, height: root.scrollHeight, wide: wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 120)),
    tables, sorted, drawings: document.querySelectorAll("svg").length, headings: document.querySelectorAll("h1").length }, "*");
});</script>'
printf '%s' "$probe" > "$profile/probe"
sed -e "s/script-src /script-src 'unsafe-inline' /; s/'sha256-[^']*'//" "$page" > "$profile/copy.html"
cat "$profile/probe" >> "$profile/copy.html"
cat > "$profile/frame.html" <<'END'
<!doctype html><html><body><pre id="found">nothing</pre><script>
addEventListener("message", (e) => { document.getElementById("found").textContent = "FOUND " + JSON.stringify(e.data); });
</script><iframe src="copy.html" style="width:320px;height:600px;border:0"></iframe></body></html>
END
found=$(browser --dump-dom "file://$profile/frame.html" 2>"$profile/log" | sed -n 's/.*FOUND \(.*\)<\/pre>.*/\1/p')
echo "$found"
case $found in
    *'"width":320,"scrolls":320,"tall":0,"small":0,'*'"wide":[],'*'"headings":1}') ;;
    *) echo "wider than 320 px, cells too tall, letters too small, or not rendered" >&2; exit 1 ;;
esac
tables=$(echo "$found" | sed 's/.*"tables":\([0-9]*\).*/\1/') sorted=$(echo "$found" | sed 's/.*"sorted":\([0-9]*\).*/\1/')
[ "$tables" = "$sorted" ] || { echo "$sorted of $tables tables sort" >&2; exit 1; }

# The page as it is, with its own policy.
browser --enable-logging=stderr --dump-dom "file://$page" >"$profile/dom" 2>"$profile/log"
if grep CONSOLE "$profile/log" >&2; then exit 1; fi
grep -q '</html>' "$profile/dom"
if grep -q 'class="sortable"' "$profile/dom"; then grep -q '<button type="button">' "$profile/dom"; fi
[ "$only_check" = --check ] && exit 0

height=${HEIGHT:-3000}
browser --blink-settings=preferredColorScheme=1 --window-size="1280,$height" --screenshot="$out/light.png" "file://$page" 2>/dev/null
browser --blink-settings=preferredColorScheme=0 --window-size="1280,$height" --screenshot="$out/dark.png" "file://$page" 2>/dev/null
cp "$page" "$profile/page.html"
echo "<body style='margin:0'><iframe src=page.html style='width:320px;height:${height}px;border:0'></iframe>" > "$profile/narrow.html"
browser --blink-settings=preferredColorScheme=1 --window-size="640,$height" --screenshot="$out/narrow.png" "file://$profile/narrow.html" 2>/dev/null
browser --no-pdf-header-footer --print-to-pdf="$out/paper.pdf" "file://$page" 2>/dev/null
