//! Chromium without a window, driven over the pipe of its debugging protocol: one JSON message after the other, each
//! ended by a zero byte. Only what the tests need, and untyped: Debian's Chromium moves to another protocol every month.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::harness::{self, Process};

/// For one command of the protocol, the start of Chromium on a busy machine included.
const ANSWER: Duration = Duration::from_mins(1);
/// For something to appear on the page, which looks at the cache every second.
const APPEARANCE: Duration = Duration::from_secs(30);

/// A page in a browser of its own.
pub(crate) struct Browser {
    /// Ends before its folder goes.
    _process: Process,
    _folder: TempDir,
    commands: pipe::Sender,
    answers: BufReader<pipe::Receiver>,
    session: Value,
    last: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Starts it with an empty page of 1280 × 900, in light colours.
    pub(crate) async fn start() -> Self {
        let folder = harness::scratch();
        let (commands, answers) = (
            folder.path().join("commands"),
            folder.path().join("answers"),
        );
        for name in [&commands, &answers] {
            mknodat(CWD, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        // Open for both directions, neither end waits for the other.
        let mut open = pipe::OpenOptions::new();
        open.read_write(true);
        let mut browser = Self {
            commands: open.open_sender(&commands).unwrap(),
            answers: BufReader::new(open.open_receiver(&answers).unwrap()),
            _process: launch(folder.path()),
            _folder: folder,
            session: Value::Null,
            last: 0,
            events: Vec::new(),
        };
        browser.attach().await;
        browser
    }

    async fn attach(&mut self) {
        let targets = self.command("Target.getTargets", json!({})).await;
        let targets = targets["targetInfos"].as_array().unwrap();
        let page = targets.iter().find(|target| target["type"] == "page");
        let page = json!({ "targetId": page.unwrap()["targetId"], "flatten": true });
        self.session = self.command("Target.attachToTarget", page).await["sessionId"].take();
        for domain in ["Runtime", "Log", "Network", "Page"] {
            self.command(&format!("{domain}.enable"), json!({})).await;
        }
        self.width(1280).await;
        self.look("light", false).await;
    }

    /// Goes there, and waits for the page. What it complained of before is forgotten.
    pub(crate) async fn open(&mut self, url: &str) {
        self.events.clear();
        let gone = self.command("Page.navigate", json!({ "url": url })).await;
        assert!(gone["errorText"].is_null(), "{url}: {gone}");
        let is_loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        let loading = async {
            while !self.events.iter().any(is_loaded) {
                let event = self.message().await;
                self.events.push(event);
            }
        };
        let loaded = timeout(ANSWER, loading).await;
        loaded.unwrap_or_else(|_| panic!("{url} is not loaded within {ANSWER:?}"));
    }

    /// Runs this script before those of each page that is opened from now on.
    pub(crate) async fn before_each_page(&mut self, script: &str) {
        let script = json!({ "source": script });
        self.command("Page.addScriptToEvaluateOnNewDocument", script)
            .await;
    }

    /// How wide the window is, in CSS pixels.
    pub(crate) async fn width(&mut self, width: u32) {
        let metrics =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.command("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// What the user prefers: `light` or `dark` colours, and less motion or not.
    pub(crate) async fn look(&mut self, scheme: &str, is_calm: bool) {
        let motion = if is_calm { "reduce" } else { "no-preference" };
        let features = json!({ "features": [
            { "name": "prefers-color-scheme", "value": scheme },
            { "name": "prefers-reduced-motion", "value": motion },
        ] });
        self.command("Emulation.setEmulatedMedia", features).await;
    }

    /// The value of an expression, waited for if it is a promise.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let evaluate =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.command("Runtime.evaluate", evaluate).await;
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].take()
    }

    /// The text of an element; also of one that only assistive technology shows.
    pub(crate) async fn text(&mut self, selector: &str) -> String {
        let text = format!("document.querySelector('{selector}').textContent");
        self.value(&text).await.as_str().unwrap().to_owned()
    }

    /// Gives an element the focus.
    pub(crate) async fn focus(&mut self, selector: &str) {
        let focus = format!("document.querySelector('{selector}').focus()");
        self.value(&focus).await;
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let waiting = async {
            while self.value(&format!("Boolean({expression})")).await != true {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let seen = timeout(APPEARANCE, waiting).await;
        if seen.is_err() {
            let page = self.value("document.body.innerText").await;
            panic!(
                "not within {APPEARANCE:?}: {expression}\n{}",
                page.as_str().unwrap_or_default()
            );
        }
    }

    /// Presses and releases a key, such as `Tab`, `Enter` or `/`.
    pub(crate) async fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "End" => (35, ""),
            "ArrowRight" => (39, ""),
            other => (0, other),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.command("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Types into what has the focus.
    pub(crate) async fn write(&mut self, text: &str) {
        self.command("Input.insertText", json!({ "text": text }))
            .await;
    }

    /// Puts a picture of the whole page into the folder that the environment names, for people to look at.
    pub(crate) async fn picture(&mut self, name: &str) {
        let Some(folder) = harness::variable("CORAL_REAL_PICTURES") else {
            return;
        };
        let mut size =
            self.command("Page.getLayoutMetrics", json!({})).await["cssContentSize"].take();
        size["scale"] = 1.into();
        let whole = json!({ "format": "png", "captureBeyondViewport": true, "clip": size });
        let picture = self.command("Page.captureScreenshot", whole).await;
        let picture = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).unwrap();
    }

    /// What the console shows since the page was opened: errors, warnings, exceptions.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let complaints = self.events.iter().filter_map(|event| {
            let shown = &event["params"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded" => {
                    Some(shown.to_string())
                }
                _ => None,
            }
        });
        complaints.collect()
    }

    /// Where requests went since the page was opened: scheme, host and port.
    pub(crate) fn origins(&self) -> BTreeSet<String> {
        let requests = self
            .events
            .iter()
            .filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = requests.filter_map(|event| {
            event["params"]["request"]["url"]
                .as_str()?
                .parse::<url::Url>()
                .ok()
        });
        // The page's icon is part of the page.
        let sent = urls.filter(|url| url.scheme() != "data");
        sent.map(|url| url.origin().ascii_serialization()).collect()
    }

    async fn command(&mut self, method: &str, params: Value) -> Value {
        let answered = timeout(ANSWER, self.exchange(method, params)).await;
        answered.unwrap_or_else(|_| panic!("no answer to {method} within {ANSWER:?}"))
    }

    async fn exchange(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let message = format!("{message}\0");
        self.commands.write_all(message.as_bytes()).await.unwrap();
        loop {
            let mut answer = self.message().await;
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push(answer);
        }
    }

    async fn message(&mut self) -> Value {
        let mut message = Vec::new();
        self.answers.read_until(0, &mut message).await.unwrap();
        message.pop();
        serde_json::from_slice(&message).unwrap()
    }
}

fn launch(folder: &Path) -> Process {
    // The protocol is spoken over the descriptors 3 and 4.
    let mut command = harness::command("sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" 3<commands 4>answers", "chromium"])
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg("about:blank")
        .env("HOME", folder)
        .current_dir(folder);
    Process::spawn("chromium", command, &folder.join("log"))
}
