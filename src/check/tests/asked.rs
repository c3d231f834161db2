//! How often, and with what consequence, Datadog is asked.

use super::*;
use crate::check::keys::Keys;

#[tokio::test(start_paused = true)]
async fn a_query_is_read_once_for_several_triggers() {
    let mut object = with(&json!({}));
    let trigger = object["spec"]["triggers"][0].clone();
    object["spec"]["triggers"].as_array_mut().unwrap().push(trigger);
    let told = told(&config(), &object.to_string(), || Ok(one_series())).await;
    assert!(told.fine);
    assert_eq!(told.requests, 1);
    assert!(
        told.text.ends_with(
            "\n\n   fine  checkout[0]: 11.5, active\n   fine  checkout[1]: 11.5, active\n"
        ),
        "{}",
        told.text
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_does_not_ask_on() {
    let requests = async |script: Script| {
        let mut object = with(&json!({}));
        let mut other = object["spec"]["triggers"][0].clone();
        other["metadata"]["query"] = json!("avg:shop.other{*}");
        object["spec"]["triggers"].as_array_mut().unwrap().push(other);
        told(&config(), &object.to_string(), script).await.requests
    };
    let throttled: Script =
        || Err(SourceError::Throttled { host: "api.datadoghq.eu".to_owned(), limit: None });
    let malformed: Script = || Err(SourceError::Malformed { reason: "no".to_owned() });
    assert_eq!((requests(throttled).await, requests(malformed).await), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_concerns_nobody_else() {
    let requests = Arc::new(AtomicUsize::new(0));
    let host = || "api.datadoghq.eu".to_owned();
    let script: Script = || Err(SourceError::Refused { status: 403, host: String::new() });
    let source = Scripted { script, takes: Duration::ZERO, requests: requests.clone() };
    let mut asking = asking(source, Err(CredentialsError::None));
    let mut found = Found::default();
    found.add("shop.yaml", &with(&json!({})).to_string()).unwrap();
    let [selected] = found.select(None).unwrap().0[..] else { panic!("there is one") };
    for (of, expected) in [("one", 1), ("other", 2), ("one", 2)] {
        let keys = crate::demand::Keys::Pair { api: of.into(), app: of.into() };
        let account = Account::new(format!("https://{}", host()).parse().unwrap(), keys);
        let keys = Keys::Resolved { account: Arc::new(account), of: format!("the test {of}") };
        let (mut examined, trigger) = examine::examine(&selected, None);
        let server = config().server;
        asking.explain(&trigger.unwrap(), keys, &server, &mut examined).await;
        let Evidence::Datadog { request, .. } = examined.evidence else { panic!("it is asked") };
        assert_eq!((request.host, request.keys), (host(), format!("the test {of}")));
        assert_eq!(requests.load(Ordering::Relaxed), expected, "{of}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_without_keys() {
    let requests = Arc::new(AtomicUsize::new(0));
    let script: Script = || Ok(one_series());
    let source = Scripted { script, takes: Duration::ZERO, requests: requests.clone() };
    let mut asking = asking(source, Err(CredentialsError::None));
    let mut found = Found::default();
    found.add("shop.yaml", &with(&json!({})).to_string()).unwrap();
    let [selected] = found.select(None).unwrap().0[..] else { panic!("there is one") };
    let (mut examined, trigger) = examine::examine(&selected, None);
    asking.explain(&trigger.unwrap(), Keys::None, &config().server, &mut examined).await;
    assert_eq!(requests.load(Ordering::Relaxed), 0);
    assert!(examined.is_fine() && examined.outcome.is_none());
    assert_eq!(examined.findings.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_judged_as_of_when_it_came() {
    let mut object = with(&json!({"holdLastValue": "0"}));
    let trigger = object["spec"]["triggers"][0].clone();
    let mut slow = trigger.clone();
    slow["metadata"]["query"] = json!("avg:shop.other{*}");
    slow["metadata"]["timeout"] = json!("2s");
    object["spec"]["triggers"] = json!([trigger, slow, trigger]);
    let config = Config { output: Output::Json, ..config() };
    let takes = Duration::from_secs(20);
    let told = told_after(takes, &config, &object.to_string(), || Ok(one_series())).await;
    let report: Value = serde_json::from_str(&told.text).unwrap();
    assert_eq!(told.requests, 2);
    for trigger in report["triggers"].as_array().unwrap() {
        assert_eq!(trigger["outcome"]["value"], 11.5, "{trigger}");
    }
    assert_eq!(report["triggers"][1]["request"]["took_ms"], 20_000.0);
    let slow = &report["triggers"][1]["findings"][0];
    let message = "the answer took 20.0 s, and KEDA is kept waiting for 2s at most; the first time \
                   it gets DEADLINE_EXCEEDED; make the query quicker";
    assert_eq!((&slow["level"], &slow["message"]), (&json!("warning"), &json!(message)));
}
