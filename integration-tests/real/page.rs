//! The page of the admin listener in a browser: a download that moves, search, keyboard, what happens without the cache,
//! and that it can be read by everybody. `CORAL_REAL_PICTURES=FOLDER` keeps pictures of it.

use std::net::SocketAddr;

use coral_integration_tests::images::Image;
use coral_integration_tests::pull::pull;
use coral_integration_tests::upstream::Upstream;
use serde_json::json;

use self::answers::{answering, everything, hostile};
use crate::browser::Browser;
use crate::coral::{self, Config, Coral};

mod answers;

/// An upstream, our registry in front of it, and the page in a browser.
struct Scene {
    upstream: Upstream,
    coral: Coral,
    browser: Browser,
}

impl Scene {
    async fn new() -> Self {
        let upstream = Upstream::start().await.unwrap();
        let value = format!("{{ plainHttp: true, endpoints: [\"{}\"] }}", upstream.url());
        Self {
            coral: Coral::start(Config::new(coral::UPSTREAM, &value)).await,
            browser: Browser::start().await,
            upstream,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.coral.admin())
    }

    /// Opens the page and waits for its first figures.
    async fn open(&mut self) {
        let url = format!("{}/ui/", self.url());
        self.browser.open(&url).await;
        self.browser
            .until("document.querySelector('#states .good')")
            .await;
    }

    /// Pulls 60 images through the registry, one of them with the tag `needle`.
    async fn fill(&self) {
        let address: SocketAddr = self.coral.address().parse().unwrap();
        for number in 0..60_u64 {
            let tag = match number {
                7 => "needle".to_owned(),
                _ => format!("v{number}"),
            };
            let image = Image::new(number, &[1000 * (1 + number * 7 % 60)]);
            self.upstream.publish("team/app", &tag, &image);
            let repository = format!("{}/team/app", coral::UPSTREAM);
            pull(address, &repository, &tag).await.unwrap();
        }
    }

    /// Nothing in the console, and no request to anybody but our registry.
    fn assert_quiet(&self) {
        let complaints = self.browser.complaints();
        assert!(complaints.is_empty(), "the console says {complaints:#?}");
        let origins: Vec<_> = self.browser.origins().into_iter().collect();
        assert_eq!(origins, [self.url()]);
    }
}

const ROWS: &str = "[...document.querySelectorAll('#images tbody tr')]";
const BAR: &str = "document.querySelector('#transfers [role=progressbar]')";

#[tokio::test]
async fn a_running_download_moves_and_becomes_an_image() {
    let mut scene = Scene::new().await;
    scene
        .upstream
        .configure(|settings| settings.bandwidth = Some(2 << 20));
    let image = Image::new(7, &[24 << 20]);
    scene.upstream.publish("team/app", "1", &image);
    scene.browser.open(&format!("{}/", scene.url())).await;
    let empty = "document.querySelector('#images-empty').innerText.includes('The cache is empty')";
    scene.browser.until(empty).await;
    let told = "document.querySelector('#mirror-config').innerText.includes('[host.')";
    scene.browser.until(told).await;
    assert_eq!(scene.browser.value("location.pathname").await, "/ui/");
    scene.browser.picture("empty").await;

    // A client that reads the manifest, and the layer at its own pace: it holds the answer until the end of the test.
    let path = format!("{}/team/app", coral::UPSTREAM);
    let manifest = scene.coral.get(&format!("{path}/manifests/1")).await;
    assert_eq!(manifest.status(), 200);
    let layer = image.layers()[0].digest;
    let reading = scene.coral.get(&format!("{path}/blobs/{layer}")).await;
    assert_eq!(reading.status(), 200);
    scene
        .browser
        .until(&format!("Number({BAR}?.ariaValueNow) > 0"))
        .await;
    let now = format!("Number({BAR}.ariaValueNow)");
    let first = scene.browser.value(&now).await.as_u64().unwrap();
    scene.browser.until(&format!("{now} > {first}")).await;
    let row = scene
        .browser
        .value(&format!("{BAR}.closest('tr').innerText"))
        .await;
    let row = row.as_str().unwrap();
    for shown in [&path, "of 24.0 MiB", "iB/s", " s\t1\trunning"] {
        assert!(row.contains(shown), "{shown} in {row}");
    }
    let label = scene.browser.value(&format!("{BAR}.ariaLabel")).await;
    assert!(label.as_str().unwrap().contains(&path), "{label}");
    scene.browser.picture("busy").await;

    scene.browser.until(&format!("!{BAR}")).await;
    let listed = format!(
        "{ROWS}[0]?.innerText.includes('{path}:1') && {ROWS}[0].innerText.includes('24.0 MiB')"
    );
    scene.browser.until(&listed).await;
    scene.assert_quiet();
    drop(reading);
}

#[tokio::test]
async fn the_search_works_with_the_keyboard() {
    let mut scene = Scene::new().await;
    scene.fill().await;
    scene.open().await;
    let is_whole = format!("{ROWS}.length === 50");
    scene.browser.until(&is_whole).await;

    scene.browser.press("/").await;
    let focus = scene.browser.value("document.activeElement.id").await;
    assert_eq!(focus, "query");
    scene.browser.write("app:need").await;
    let found = format!("{ROWS}.length === 1 && {ROWS}[0].innerText.includes('needle')");
    scene.browser.until(&found).await;
    let count = scene.browser.text("#images-count").await;
    assert_eq!(count, "1 image with “app:need”");
    scene.browser.write("nothing").await;
    let nothing = "document.querySelector('#images-empty').innerText.includes('needn')";
    scene.browser.until(nothing).await;
    scene.browser.press("Escape").await;
    scene.browser.until(&is_whole).await;
    scene.assert_quiet();
}

#[tokio::test]
async fn everything_can_be_reached_and_used_with_the_keyboard() {
    let mut scene = Scene::new().await;
    scene.fill().await;
    scene.open().await;
    scene.browser.until(&format!("{ROWS}.length === 50")).await;

    let stops = walk(&mut scene.browser).await;
    for wanted in REACHED {
        assert!(
            stops.iter().any(|stop| stop == wanted),
            "{wanted} in {stops:?}"
        );
    }
    let sizes = format!("{ROWS}.map(row => parseFloat(row.cells[2].innerText))");
    scene.browser.focus("[data-sort=size] button").await;
    for (order, sign) in [("descending", "-"), ("ascending", "+")] {
        scene.browser.press("Enter").await;
        let sort = "document.querySelector('[data-sort=size]').ariaSort";
        assert_eq!(scene.browser.value(sort).await, order);
        let sorted = format!(
            "{sizes}.every((size, at, all) => at === 0 || {sign}(size - all[at - 1]) >= 0)"
        );
        assert_eq!(scene.browser.value(&sorted).await, true, "{order}");
    }
    scene.browser.focus("#more").await;
    scene.browser.press("Enter").await;
    assert_eq!(scene.browser.value(&format!("{ROWS}.length")).await, 60);
    let focus = format!("{ROWS}.indexOf(document.activeElement)");
    let focus = scene.browser.value(&focus).await;
    assert_eq!(focus, 50, "goes on where the button was");
    scene.assert_quiet();
}

/// What Tab comes by, by its text or id.
const REACHED: [&str; 7] = [
    "Skip to the content",
    "query",
    "Image",
    "Size held",
    "Last use",
    "Show 10 more",
    "Point a client here",
];

/// Presses Tab through the whole page: the names of what gets the focus, each with a visible ring.
async fn walk(browser: &mut Browser) -> Vec<String> {
    let here = "{ const node = document.activeElement, ring = getComputedStyle(node);
        [node.id === 'query' ? node.id : node.innerText.trim(), ring.outlineStyle !== 'none', node === document.body] }";
    let mut stops: Vec<String> = Vec::new();
    browser.press("Tab").await;
    loop {
        let at = browser.value(here).await;
        let name = at[0].as_str().unwrap().to_owned();
        if at[2] == true || stops.first() == Some(&name) {
            return stops;
        }
        assert_eq!(at[1], true, "{name} shows that it has the focus");
        stops.push(name);
        assert!(stops.len() < 100, "Tab does not come to an end: {stops:?}");
        browser.press("Tab").await;
    }
}

#[tokio::test]
async fn names_and_errors_are_shown_as_text() {
    let mut scene = Scene::new().await;
    let markup = "<img src=x onerror=window.hurt=1><script>window.hurt=1</script>";
    scene
        .browser
        .before_each_page(&answering(&hostile(markup)))
        .await;
    scene.open().await;
    scene.browser.until(&format!("{ROWS}.length === 1")).await;
    for place in [
        "#transfers",
        "#upstreams",
        "#images",
        "#states",
        "#refused-error",
    ] {
        let text = format!("document.querySelector('{place}').textContent.includes('{markup}')");
        assert_eq!(scene.browser.value(&text).await, true, "{place}");
    }
    let nodes = "[document.images.length, document.scripts.length, window.hurt ?? 0]";
    assert_eq!(scene.browser.value(nodes).await, json!([0, 1, 0]));
    let refused = "try { document.body.innerHTML = '<b>'; 'made' } catch (error) { error.name }";
    assert_eq!(
        scene.browser.value(refused).await,
        "TypeError",
        "markup from strings"
    );
}

#[tokio::test]
async fn the_mistakes_of_a_refused_file_are_shown() {
    let mut scene = Scene::new().await;
    scene.open().await;
    let mut file = std::fs::read_to_string(scene.coral.configuration()).unwrap();
    file.push_str("\"<b>sore</b>\": 1\n");
    std::fs::write(scene.coral.configuration(), file).unwrap();
    scene
        .browser
        .until("!document.querySelector('#refused').hidden")
        .await;
    let error = scene.browser.text("#refused-error").await;
    assert!(error.contains("<b>sore</b>"), "{error}");
    let news = scene.browser.text("#news").await;
    assert_eq!(news, "Now: configuration refused");
    scene.assert_quiet();
}

#[tokio::test]
async fn a_cache_that_does_not_answer_is_said_and_comes_back() {
    let mut scene = Scene::new().await;
    scene.open().await;
    scene.coral.kill().await;
    scene
        .browser
        .until("!document.querySelector('#banner').hidden")
        .await;
    let said = scene.browser.text("#banner").await;
    assert!(
        said.contains("The cache does not answer.") && said.contains("Next attempt"),
        "{said}"
    );
    scene.browser.picture("down").await;
    scene.coral.start_again().await;
    scene
        .browser
        .value("document.querySelector('#retry').click()")
        .await;
    scene
        .browser
        .until("document.querySelector('#banner').hidden")
        .await;
    let news = scene.browser.text("#news").await;
    assert_eq!(news, "The cache answers again.");
}

#[tokio::test]
async fn where_the_api_asks_for_a_token_so_does_the_page() {
    let mut scene = Scene::new().await;
    let file = scene.coral.configuration();
    let keys = file.with_file_name("jwks");
    std::fs::write(&keys, r#"{"keys":[]}"#).unwrap();
    let auth = format!(
        "admin: {{ auth: {{ issuer: here, audience: coral, subjects: [me], jwks: {} }},",
        keys.display()
    );
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("admin: {", &auth, 1)).unwrap();
    scene.coral.crash().await;

    scene.browser.open(&format!("{}/ui/", scene.url())).await;
    let reason = "document.querySelector('#banner-reason').textContent";
    scene
        .browser
        .until(&format!("{reason}.includes('there is none')"))
        .await;
    scene.browser.picture("token").await;
    scene.browser.focus("#token").await;
    scene.browser.write("invented").await;
    scene.browser.press("Enter").await;
    // It was sent: now another thing is wrong.
    scene
        .browser
        .until(&format!("{reason}.includes('it is no JWT')"))
        .await;
    let kept = "document.querySelector('#token').value + Object.keys(window.localStorage).length + document.cookie";
    assert_eq!(scene.browser.value(kept).await, "0");
}

#[tokio::test]
async fn it_fits_a_phone_and_can_be_read_in_light_and_dark() {
    let mut scene = Scene::new().await;
    scene
        .browser
        .before_each_page(&answering(&everything()))
        .await;
    scene.open().await;
    scene.browser.until(&format!("{ROWS}.length === 3")).await;
    scene
        .browser
        .value("document.querySelector('#connect').open = true")
        .await;
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        scene.browser.look(scheme, false).await;
        for width in [360, 720, 1280] {
            scene.browser.width(width).await;
            let sideways =
                "document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(
                scene.browser.value(sideways).await,
                0,
                "{scheme}, {width} wide"
            );
            let out = format!(
                "[...document.querySelectorAll('main *')].filter(node => node.getBoundingClientRect().right > {width} && !node.closest('thead:not(:has(button))')).map(node => node.outerHTML.slice(0, 200))"
            );
            assert_eq!(
                scene.browser.value(&out).await,
                json!([]),
                "stands out at {width}"
            );
            scene.browser.picture(&format!("{scheme}-{width}")).await;
        }
        let pale = scene.browser.value(PALE).await;
        assert_eq!(pale, json!([]), "contrast below 4.5 in {scheme}");
        grounds.push(
            scene
                .browser
                .value("getComputedStyle(document.body).backgroundColor")
                .await,
        );
    }
    assert_ne!(grounds[0], grounds[1]);
    let moving = format!("getComputedStyle({BAR}.firstElementChild).transitionDuration");
    assert_eq!(scene.browser.value(&moving).await, "1s");
    scene.browser.look("light", true).await;
    assert_eq!(scene.browser.value(&moving).await, "0s");
    scene.assert_quiet();
}

/// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, success criterion 1.4.3).
const PALE: &str = "(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(node).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const light = (color) => {
    const [r, g, b] = color.map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('.hidden')) continue;
    const [one, other] = [parse(getComputedStyle(node).color).slice(0, 3), behind(node)].map(light);
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) pale.push(`${walker.currentNode.textContent}: ${contrast.toFixed(2)}`);
  }
  return pale;
})()";
