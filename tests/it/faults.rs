//! The sandbox broken on command: what each fault looks like over HTTP, and who may switch it.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::Parser as _;
use keda_datadog_scaler::{
    cli::{Cli, Command},
    sandbox::{self, Fault},
    serve::Shutdown,
};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::harness::{http_client, install_tls, soon};

const FLAT: &str = "avg:sandbox.flat{*}";
const ZERO: &str = "avg:sandbox.zero{*}";

/// The sandbox on free ports.
struct Sandbox {
    datadog: String,
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
    /// Only the simulated Datadog.
    async fn start(flags: &[&str]) -> Self {
        install_tls();
        let basis = ["keda-datadog-scaler", "sandbox", "--datadog-only", "--datadog-listen"];
        let arguments = [&basis[..], &["127.0.0.1:0"], flags].concat();
        let Command::Sandbox(options) = Cli::parse_from(arguments).command else {
            panic!("it is `sandbox`")
        };
        let (sender, mut printed) = watch::channel(String::new());
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut out = Printed(sender);
            sandbox::run(options.config(String::new()), &mut out, Shutdown::default()).await
        });
        let printed = soon(printed.wait_for(|printed| printed.contains("\nCtrl-C"))).await.unwrap();
        let (_, url) = printed.split_once("A simulated Datadog").unwrap();
        let datadog = url.split_whitespace().next().unwrap().to_owned();
        Self { datadog, _running: running }
    }

    /// As the scaler asks, about all of time.
    async fn ask(&self, query: &str) -> Response {
        soon(self.request(query).send()).await.unwrap()
    }

    fn request(&self, query: &str) -> reqwest::RequestBuilder {
        self.request_of(("0", "99999999999"), query)
    }

    fn request_of(&self, (from, to): (&str, &str), query: &str) -> reqwest::RequestBuilder {
        http_client()
            .get(format!("{}/api/v1/query", self.datadog))
            .query(&[("from", from), ("to", to), ("query", query)])
            .header("dd-api-key", "sandbox-api-key")
            .header("dd-application-key", "sandbox-app-key")
    }

    /// Status and text of the answer.
    async fn switch(&self, method: Method, path: &str, query: Option<&str>) -> (u16, String) {
        let request = http_client().request(method, format!("{}{path}", self.datadog));
        let response = soon(request.query(&query.map(|query| [("query", query)])).send());
        let response = response.await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn break_all(&self, fault: Fault) {
        let (status, line) = self.switch(Method::PUT, &format!("/faults/{fault}"), None).await;
        assert_eq!((status, line), (200, format!("broken: {fault} for all queries\n")));
    }
}

async fn json_of(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// The last value of each series.
async fn last_values(response: Response) -> Vec<Option<f64>> {
    let reply: Value = json_of(response).await;
    assert_eq!(reply["status"], "ok");
    let series = reply["series"].as_array().unwrap();
    series
        .iter()
        .map(|series| series["pointlist"].as_array().unwrap().last().unwrap()[1].as_f64())
        .collect()
}

#[tokio::test]
async fn what_is_refused_is_refused_by_its_status() {
    let sandbox = Sandbox::start(&["--rate-limit", "100"]).await;
    for (fault, status, remaining, body) in [
        (Fault::Unauthorized, 401, None, r#"{"errors":["Unauthorized"]}"#),
        (Fault::Forbidden, 403, None, r#"{"code":403,"errors":["Forbidden"],"status":"error"}"#),
        (Fault::Throttled, 429, Some("0"), r#"{"errors":["Too many requests"]}"#),
        (Fault::ThrottledBare, 429, None, "<html>"),
        (Fault::ServerError, 500, None, ""),
        (Fault::BadGateway, 502, None, "\"Bad Gateway\""),
        (Fault::GatewayTimeout, 504, None, "<html>"),
        (Fault::Unprocessable, 422, Some("99"), r#"{"errors":["Unprocessable Content"]}"#),
    ] {
        sandbox.break_all(fault).await;
        let response = sandbox.ask(FLAT).await;
        assert_eq!(response.status(), status, "{fault}");
        let left = response.headers().get("x-ratelimit-remaining").cloned();
        assert_eq!(left.as_ref().map(|left| left.to_str().unwrap()), remaining, "{fault}");
        let text = response.text().await.unwrap();
        assert!(text.starts_with(body) && text.is_empty() == body.is_empty(), "{fault}: {text}");
    }
    assert_eq!(
        sandbox.switch(Method::DELETE, "/faults", None).await,
        (200, "nothing is broken\n".into())
    );
    assert_eq!(last_values(sandbox.ask(FLAT).await).await, [Some(12.0)]);
}

#[tokio::test]
async fn a_200_can_be_as_bad() {
    let sandbox = Sandbox::start(&[]).await;
    for (fault, error) in [
        (Fault::Error, "Query timed out"),
        (Fault::Rejected, "Error parsing query: \nunable to parse avg:sandbox.flat{*}: "),
    ] {
        sandbox.break_all(fault).await;
        let response = sandbox.ask(FLAT).await;
        assert_eq!(response.status(), 200, "{fault}");
        let reply: Value = json_of(response).await;
        assert_eq!((&reply["status"], &reply["series"]), (&json!("error"), &json!([])), "{fault}");
        assert!(reply["error"].as_str().unwrap().starts_with(error), "{reply}");
    }
    for fault in [Fault::Garbage, Fault::Truncated] {
        sandbox.break_all(fault).await;
        let response = sandbox.ask(FLAT).await;
        assert_eq!(response.status(), 200, "{fault}");
        assert_eq!(response.headers()["content-type"], "application/json");
        let text = response.text().await.unwrap();
        assert_eq!(text.starts_with("{\""), fault == Fault::Truncated, "{text}");
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
    }
    sandbox.break_all(Fault::Huge).await;
    let body = sandbox.ask(FLAT).await.bytes().await.unwrap();
    assert!(body.len() > 8 << 20, "{} bytes", body.len());
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], "ok");
}

#[tokio::test]
async fn an_answer_comes_late_in_part_or_never() {
    let sandbox = Sandbox::start(&[]).await;
    sandbox.break_all(Fault::Latency).await;
    let started_at = Instant::now();
    assert_eq!(last_values(sandbox.ask(FLAT).await).await, [Some(12.0)]);
    assert!(started_at.elapsed() >= Duration::from_millis(300));

    sandbox.break_all(Fault::Reset).await;
    let mut response = sandbox.ask(FLAT).await;
    assert_eq!(response.status(), 200);
    let promised = response.content_length().unwrap();
    let mut came = 0;
    let broke_off = loop {
        match soon(response.chunk()).await {
            Ok(Some(part)) => came += part.len() as u64,
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broke_off && 0 < came && came < promised, "{came} of {promised}");

    for fault in [Fault::Slow, Fault::Hang] {
        sandbox.break_all(fault).await;
        let given_up = sandbox.request(FLAT).timeout(Duration::from_millis(400)).send();
        assert!(soon(given_up).await.unwrap_err().is_timeout(), "{fault}");
    }
}

#[tokio::test]
async fn data_is_missing_for_one_query_and_not_for_its_neighbours() {
    let sandbox = Sandbox::start(&[]).await;
    let both = format!("{FLAT},{ZERO}");
    for (fault, alone, beside) in [
        ("empty", &[][..], &[Some(0.0)][..]),
        ("null", &[None], &[None, Some(0.0)]),
        ("last-null", &[None], &[None, Some(0.0)]),
    ] {
        let path = format!("/faults/{fault}");
        let (status, line) = sandbox.switch(Method::PUT, &path, Some(FLAT)).await;
        assert_eq!((status, line), (200, format!("broken: {fault} for {FLAT}\n")));
        assert_eq!(last_values(sandbox.ask(FLAT).await).await, alone, "{fault}");
        assert_eq!(last_values(sandbox.ask(&both).await).await, beside, "{fault}");
        assert_eq!(last_values(sandbox.ask(ZERO).await).await, [Some(0.0)], "{fault}");
    }
    sandbox.switch(Method::PUT, "/faults/502", Some(ZERO)).await;
    assert_eq!(sandbox.ask(&both).await.status(), 502);
    sandbox.switch(Method::DELETE, "/faults", Some(ZERO)).await;
    assert_eq!(last_values(sandbox.ask(&both).await).await, [None, Some(0.0)]);
}

#[tokio::test]
async fn a_clock_ahead_of_datadogs_looks_into_its_future() {
    let sandbox = Sandbox::start(&[]).await;
    let now = |response: Response| async {
        let date = response.headers()["date"].to_str().unwrap().to_owned();
        let reply: Value = json_of(response).await;
        (date, reply["to_date"].as_i64().unwrap() / 1_000)
    };
    let (date, time) = now(sandbox.ask(FLAT).await).await;
    sandbox.break_all(Fault::ClockSkew).await;
    let (skewed_date, skewed_time) = now(sandbox.ask(FLAT).await).await;
    // However long it took to ask.
    assert!((30..=600).contains(&(time - skewed_time)), "{time} and {skewed_time}");
    assert_ne!(date, skewed_date);
    let window = ((time - 90).to_string(), time.to_string());
    let response = soon(sandbox.request_of((&window.0, &window.1), FLAT).send()).await.unwrap();
    assert_eq!(last_values(response).await, []);
}

#[tokio::test]
async fn a_neighbour_spends_the_limit_until_it_is_gone() {
    let sandbox = Sandbox::start(&["--rate-limit", "1000000"]).await;
    let left = async || {
        let response = sandbox.ask(FLAT).await;
        let left = response.headers()["x-ratelimit-remaining"].to_str().unwrap();
        left.parse::<u32>().unwrap()
    };
    assert_eq!(left().await, 999_999);
    sandbox.break_all(Fault::Neighbour).await;
    // A tenth of it each second; the test itself does not ask that often.
    soon(async { while left().await > 900_000 {} }).await;
    sandbox.switch(Method::DELETE, "/faults", None).await;
    assert!(left().await > 900_000);
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
