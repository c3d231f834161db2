//! The sandbox in process: how it is broken and mended, by whom, and what its page tells.

use std::io::{self, Write};

use clap::Parser as _;
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment},
    credentials::{AgentText, Given, Origin},
    sandbox::{self, Fault},
    serve::Shutdown,
};
use reqwest::{Method, Response};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use url::Url;

use crate::harness::{http_client, install_tls, soon};

pub(crate) const FLAT: &str = "avg:sandbox.flat{*}";

/// The sandbox on free ports.
pub(crate) struct Sandbox {
    pub(crate) datadog: String,
    pub(crate) agent: String,
    printed: String,
    _running: JoinSet<anyhow::Result<()>>,
}

/// What the sandbox prints, as it does.
struct Printed(watch::Sender<String>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_modify(|printed| *printed += str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sandbox {
    /// Only the simulated Datadog and Cluster Agent.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        install_tls();
        let basis = ["keda-datadog-scaler", "sandbox", "--datadog-only"];
        let free = ["--datadog-listen", "--agent-listen"].map(|flag| [flag, "127.0.0.1:0"]);
        let arguments = [&basis[..], free.as_flattened(), flags].concat();
        let Command::Sandbox(options) = Cli::parse_from(arguments).command else {
            panic!("it is `sandbox`")
        };
        let (sender, mut printed) = watch::channel(String::new());
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut out = Printed(sender);
            sandbox::run(options.config(String::new()), &mut out, Shutdown::default()).await
        });
        let printed =
            soon(printed.wait_for(|printed| printed.contains("\nCtrl-C"))).await.unwrap().clone();
        let url = |label| {
            let (_, url) = printed.split_once(label).unwrap();
            url.split_whitespace().next().unwrap().to_owned()
        };
        let (datadog, agent) = (url("A simulated Datadog"), url("A simulated Cluster Agent"));
        Self { datadog, agent, printed, _running: running }
    }

    /// As the scaler asks, about all of time.
    pub(crate) async fn ask(&self, query: &str) -> Response {
        soon(self.request(query).send()).await.unwrap()
    }

    pub(crate) fn request(&self, query: &str) -> reqwest::RequestBuilder {
        self.request_of(("0", "99999999999"), query)
    }

    pub(crate) fn request_of(
        &self,
        (from, to): (&str, &str),
        query: &str,
    ) -> reqwest::RequestBuilder {
        http_client()
            .get(format!("{}/api/v1/query", self.datadog))
            .query(&[("from", from), ("to", to), ("query", query)])
            .header("dd-api-key", "sandbox-api-key")
            .header("dd-application-key", "sandbox-app-key")
    }

    /// Status and text of the answer.
    pub(crate) async fn switch(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
    ) -> (u16, String) {
        let request = http_client().request(method, format!("{}{path}", self.datadog));
        let response = soon(request.query(&query.map(|query| [("query", query)])).send());
        let response = response.await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn break_all(&self, fault: Fault) {
        let (status, line) = self.switch(Method::PUT, &format!("/faults/{fault}"), None).await;
        assert_eq!((status, line), (200, format!("broken: {fault} for all queries\n")));
    }
}

#[tokio::test]
async fn keys_are_looked_at_before_anything_else() {
    let sandbox = Sandbox::start(&["--fault", "504"]).await;
    assert_eq!(sandbox.ask(FLAT).await.status(), 504);
    let request = sandbox.request(FLAT).build().unwrap();
    assert_eq!(soon(http_client().get(request.url().clone()).send()).await.unwrap().status(), 403);
}

#[tokio::test]
async fn what_is_broken_from_the_start_is_listed() {
    let sandbox =
        Sandbox::start(&["--fault", "null=avg:a{b:c=d}", "--fault", "504", "--fault", "502"]).await;
    let (status, list) = sandbox.switch(Method::GET, "/faults", None).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((status, list.as_array().unwrap().len()), (200, 2), "{list}");
    assert_eq!((&list[0]["fault"], &list[0]["query"]), (&json!("502"), &Value::Null));
    assert_eq!((&list[1]["fault"], &list[1]["query"]), (&json!("null"), &json!("avg:a{b:c=d}")));
    assert_eq!(list[1]["about"], Fault::Null.about());
    assert!(list[1]["since"].as_str().unwrap().ends_with('Z'), "{list}");
}

#[tokio::test]
async fn the_dial_is_what_was_last_put() {
    let sandbox = Sandbox::start(&[]).await;
    for value in [7.25, -1.0] {
        let (status, line) =
            sandbox.switch(Method::PUT, &format!("/dial?value={value}"), None).await;
        assert_eq!((status, line), (200, format!("sandbox.dial is {value}\n")));
        let reply = sandbox.ask("avg:sandbox.dial{*}").await.text().await.unwrap();
        let reply: Value = serde_json::from_str(&reply).unwrap();
        let points = reply["series"][0]["pointlist"].as_array().unwrap();
        assert!(points.iter().all(|point| point[1] == value), "{points:?}");
    }
    for path in ["/dial?value=NaN", "/dial?value=much", "/dial"] {
        assert_eq!(sandbox.switch(Method::PUT, path, None).await.0, 400, "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_switched_is_said() {
    let sandbox = Sandbox::start(&[]).await;
    for (method, path, status, line) in [
        (Method::PUT, "/faults/505", 404, "`505` is not a fault; the faults are 401, 403, "),
        (Method::PUT, "/faults/504?query=%20", 400, "the query is empty; name one, "),
        (
            Method::PUT,
            "/faults/504?qeury=a",
            400,
            "Failed to deserialize query string: qeury: unknown",
        ),
        (
            Method::DELETE,
            "/faults?qeury=a",
            400,
            "Failed to deserialize query string: qeury: unknown",
        ),
        (
            Method::PUT,
            "/faults/stale?query=avg:a",
            400,
            "`stale` is a fault of the Cluster Agent only, ",
        ),
        (Method::POST, "/faults/504", 405, "PUT /faults/NAME, DELETE /faults and GET "),
        (Method::PUT, "/faults", 405, "PUT /faults/NAME, DELETE /faults and GET "),
    ] {
        let (got, text) = sandbox.switch(method, path, None).await;
        assert!(got == status && text.starts_with(line), "{path}: {got} {text}");
    }
    for n in 0..100 {
        let query = format!("avg:a{{n:{n}}}");
        assert_eq!(sandbox.switch(Method::PUT, "/faults/504", Some(&query)).await.0, 200);
    }
    let full = "100 queries have a fault of their own, and no more can; mend one of them first\n";
    assert_eq!(sandbox.switch(Method::PUT, "/faults/504", Some(FLAT)).await, (409, full.into()));
}

#[tokio::test]
async fn a_website_in_a_browser_cannot_switch_faults() {
    let sandbox = Sandbox::start(&["--fault", "504=avg:a{*}"]).await;
    for (header, value) in [
        ("origin", "https://example.com"),
        ("origin", "null"),
        ("host", "sandbox.example.com:8282"),
    ] {
        for (method, path) in [(Method::PUT, "/faults/502"), (Method::DELETE, "/faults")] {
            let request = http_client().request(method, format!("{}{path}", sandbox.datadog));
            let response = soon(request.header(header, value).send()).await.unwrap();
            assert_eq!(response.status(), 403, "{header}: {value}");
        }
    }
    let (_, list) = sandbox.switch(Method::GET, "/faults", None).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["fault"]), (1, &json!("504")));
}

#[tokio::test]
async fn the_page_shows_what_was_asked_and_no_key() {
    let sandbox = Sandbox::start(&["--fault", "504=avg:a{*}"]).await;
    sandbox.ask("avg:<i>{*}").await;
    sandbox.ask("avg:a{*}").await;
    let url = sandbox.request("avg:b{*}").build().unwrap().url().clone();
    let with_wrong_keys = http_client().get(url).query(&[("api_key", "wrong-key")]);
    let with_wrong_keys = with_wrong_keys.header("dd-api-key", "wrong-key");
    assert_eq!(soon(with_wrong_keys.send()).await.unwrap().status(), 403);

    let response = soon(http_client().get(&sandbox.datadog).send()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'unsafe-inline'"), "{policy}");
    let page = response.text().await.unwrap();
    for shown in
        ["<code>avg:&lt;i&gt;{*}</code>", "fault 504", "<code>avg:b{*}</code>", "wrong keys"]
    {
        assert!(page.contains(shown), "no {shown} in\n{page}");
    }
    for key in ["wrong-key", "sandbox-api-key", "sandbox-app-key"] {
        assert!(!page.contains(key), "{key} in\n{page}");
    }
}

#[tokio::test]
async fn the_printed_server_is_in_front_of_both() {
    let sandbox = Sandbox::start(&[]).await;
    let (before, after) = sandbox.printed.split_once(" serve ").unwrap();
    let (flags, _) = after.split_once("\n\n").unwrap();
    let words = flags.split_whitespace().filter(|word| *word != "\\");
    let words = words.map(|word| word.trim_matches('\''));
    let arguments = ["keda-datadog-scaler", "serve"].into_iter().chain(words);
    let Command::Serve(serve) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("it is `serve`")
    };
    let environment = Environment::read(|name| {
        let (_, value) = before.split_once(&format!("{name}="))?;
        value.split_whitespace().next().map(Into::into)
    });
    let credentials = serve.config(environment).unwrap().credentials;
    let Origin::Given(Given { api_key: Some(key), .. }) = credentials.origin else {
        panic!("there are no keys")
    };
    assert_eq!(key.expose_secret(), "sandbox-api-key");
    let url = |url: &str| url.parse::<Url>().unwrap();
    assert_eq!(credentials.base_url, Some(url(&sandbox.datadog)));
    credentials.rules.allow_metric("default", "demo").unwrap();
    let agent = credentials.agent.unwrap();
    assert_eq!((agent.url, agent.is_unsafe), (url(&sandbox.agent), true));
    // The line before it makes the file.
    let AgentText::File(token) = agent.token else { panic!("it is a file") };
    assert!(
        before.contains(&format!("\n  printf sandbox-token >{}\n", token.display())),
        "{before}"
    );
}
