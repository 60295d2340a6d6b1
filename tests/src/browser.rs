//! A page in headless Chromium: what its own scripts answer, and what it complained of.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::wait;

/// Runs `script`, the body of a function, once the page has loaded; what it returns comes back as
/// JSON. An error on the page is an error here.
pub fn ask(page: &str, script: &str) -> Result<Value> {
    let complaints = "<script>window.complaints = []; \
        window.addEventListener('error', (e) => complaints.push(e.message));</script>";
    let asking = format!(
        "<script>window.addEventListener('load', () => {{ \
           let answer; \
           try {{ answer = {{ answer: (() => {{ {script} }})() }}; }} \
           catch (error) {{ answer = {{ failed: String(error.stack) }}; }} \
           answer.complaints = complaints; \
           document.documentElement.innerHTML = ''; \
           document.documentElement.textContent = \
             'ANSWER' + JSON.stringify(answer).replace(/[<>&\\u00a0]/g, \
               (c) => '\\\\u' + c.charCodeAt(0).toString(16).padStart(4, '0')) + 'END'; \
         }});</script>"
    );
    let directory = tempfile::tempdir().context("make a directory for the page")?;
    let path = directory.path().join("page.html");
    let (head, rest) = page.split_once("<style>").context("the page has no style")?;
    let (body, end) = rest.rsplit_once("</body>").context("the page has no end")?;
    let page = format!("{head}{complaints}<style>{body}{asking}</body>{end}");
    std::fs::write(&path, page).context("write the page")?;
    let shown = shown(&path, directory.path())?;
    let answer = shown
        .split_once("ANSWER")
        .and_then(|(_, rest)| rest.split_once("END"))
        .with_context(|| format!("no answer in {} characters of page", shown.len()))?
        .0;
    let answer: Value = serde_json::from_str(answer).context("read the answer")?;
    if let Some(failed) = answer["failed"].as_str() {
        bail!("the script failed: {failed}");
    }
    ensure!(answer["complaints"] == serde_json::json!([]), "{}", answer["complaints"]);
    Ok(answer["answer"].clone())
}

/// The document as it stands after its scripts ran.
fn shown(page: &Path, home: &Path) -> Result<String> {
    let mut browser = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"])
        .args(["--disable-dev-shm-usage", "--no-first-run", "--dump-dom"])
        .arg(format!("--user-data-dir={}", home.join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .stdout(std::fs::File::create(home.join("dom")).context("make a file for the document")?)
        .stderr(Stdio::null())
        .spawn()
        .context("start `chromium`; `cargo xtask setup` installs it")?;
    let ended = wait::until("the browser to end", Duration::from_secs(180), || {
        Ok(browser.try_wait().context("wait for the browser")?.is_some())
    });
    if ended.is_err() {
        browser.kill().context("end the browser")?;
        browser.wait().context("wait for the browser")?;
    }
    ended?;
    std::fs::read_to_string(home.join("dom")).context("read the document")
}
