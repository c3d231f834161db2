//! The sandbox broken on command: what each fault looks like over HTTP.

use std::time::Duration;

use jiff::fmt::rfc2822;
use keda_datadog_scaler::sandbox::Fault;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::soon,
    sandbox::{FLAT, Sandbox},
};

const ZERO: &str = "avg:sandbox.zero{*}";

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
    // By the `Date` of the answer, and by the end that it gives the window, in seconds.
    let now = |response: Response| async {
        let date = response.headers()["date"].to_str().unwrap();
        let date = rfc2822::parse(date).unwrap().timestamp().as_second();
        (date, json_of(response).await["to_date"].as_i64().unwrap() / 1_000)
    };
    let (_, time) = now(sandbox.ask(FLAT).await).await;
    sandbox.break_all(Fault::ClockSkew).await;
    let (skewed_date, skewed_time) = now(sandbox.ask(FLAT).await).await;
    assert_eq!(skewed_date, skewed_time);
    // However long it took to ask.
    assert!((30..=600).contains(&(time - skewed_time)), "{time} and {skewed_time}");
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
