//! The program as it is started: exit codes, signals, what it prints, and what it never does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::json;
use tokio::time::sleep;

use crate::cluster_agent::metric;
use crate::harness::{
    API_KEY, APP_KEY, FakeDatadog, Keda, Reply, check_status, examples, http_client, object, soon,
};
use crate::transport::TlsDatadog;

/// With nothing of this machine's environment that it would take for its own.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keda-datadog-scaler"));
    command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code and what is on stderr.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = program(arguments).envs(environment.iter().copied()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Killed if a test ends before it has.
pub(crate) struct Running {
    child: Child,
    /// What it writes to stderr until it ends: read at once, lest it waits for that.
    log: Option<JoinHandle<String>>,
    /// URL of its status server.
    pub(crate) status: String,
}

impl Running {
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn new(mut child: Child, status: String) -> Self {
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        Self { child, log: Some(log), status }
    }

    /// What it writes to stderr until it ends.
    pub(crate) fn log(&mut self) -> JoinHandle<String> {
        self.log.take().unwrap()
    }

    /// It ends soon.
    pub(crate) async fn exit_code(mut self) -> Option<i32> {
        let ended = async {
            loop {
                match self.child.try_wait().unwrap() {
                    Some(status) => return status.code(),
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        soon(ended).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `serve` on ports that are free, and waits until it is ready; says where its metrics are.
pub(crate) async fn start_serve(environment: &[(&str, &str)]) -> (Running, Keda, String) {
    // Between finding a port and listening on it, another may take it: then once more.
    loop {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [grpc, admin, status] = listeners.map(|l| l.local_addr().unwrap().to_string());
        let listen = ["--listen", &grpc, "--admin-listen", &admin, "--status-listen", &status];
        let child = program(&[&["serve"], &listen[..]].concat())
            .envs([("DD_API_KEY", API_KEY), ("DD_APP_KEY", APP_KEY)])
            .envs(environment.iter().copied())
            .spawn();
        let status = format!("http://{status}");
        let mut running = Running::new(child.unwrap(), status);
        let admin = format!("http://{admin}");
        let ready = async {
            while running.child.try_wait().unwrap().is_none() {
                let ready = http_client().get(format!("{admin}/readyz")).send().await;
                if ready.is_ok_and(|ready| ready.status().is_success()) {
                    return true;
                }
                sleep(Duration::from_millis(20)).await;
            }
            false
        };
        if soon(ready).await && running.child.try_wait().unwrap().is_none() {
            return (running, Keda::at(&format!("http://{grpc}")).await, admin);
        }
    }
}

#[test]
fn what_cannot_work_is_said_and_exits_with_one_or_two() {
    let free = ["--listen", "--admin-listen", "--status-listen"].map(|flag| [flag, "127.0.0.1:0"]);
    let (code, stderr) = run(&[&["serve"], free.as_flattened()].concat(), &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.ends_with(
        "error: there are no Datadog keys; set `DD_API_KEY` and `DD_APP_KEY`, or `--credentials-dir`\n"
    ));
    let (code, stderr) = run(&["serve", "--refresh", "15"], &[]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("must be a duration such as `500ms`, `15s` or `1m30s`, at most `24h`"),
        "{stderr}"
    );
    let (code, stderr) = run(&["serve"], &[("DATADOG_HOST", "https://user:secret@dd")]);
    assert_eq!(code, Some(2));
    assert!(!stderr.contains("secret"), "{stderr}");
    assert!(stderr.contains("`DATADOG_HOST` must be a URL"), "{stderr}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let keys = [("DD_API_KEY", "a"), ("DD_APP_KEY", "b")];
    let (code, stderr) = run(&["serve", "--listen", &address], &keys);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains(&format!("cannot listen on {address}; choose another `--listen`")),
        "{stderr}"
    );
    let tls = ["--tls-cert", "/nowhere/tls.crt", "--tls-key", "/nowhere/tls.key"];
    let (code, stderr) = run(&[&["serve"], free.as_flattened(), &tls].concat(), &keys);
    assert_eq!(code, Some(1));
    assert!(
        stderr.ends_with(
            "error: `--tls-cert` is \"/nowhere/tls.crt\", which cannot be read (No such file or \
             directory (os error 2)); give a file with PEM\n"
        ),
        "{stderr}"
    );
    let half = [("SCALER_TLS_CERT", "/nowhere/tls.crt")];
    let (code, stderr) = run(&["serve"], &half);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--tls-key <FILE>"), "{stderr}");
    let (code, stderr) = run(&["sandbox", "--listen", "0.0.0.0:9090"], &[]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("must be a loopback address"), "{stderr}");
}

/// Exit code, stdout and stderr of `check` with this on its standard input.
fn check(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> (i32, String, String) {
    let mut child = program(&[&["check"], arguments].concat())
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_by_its_exit_code_whether_all_is_fine() {
    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let keys = [("DD_API_KEY", API_KEY), ("DD_APP_KEY", APP_KEY), ("DATADOG_HOST", &*datadog.url)];
    let yaml = r#"
kind: ScaledObject
metadata: {name: shop}
spec:
  triggers:
    - type: external
      metadata: {scalerAddress: "a:1", query: "avg:a{*}", queryValue: "5"}
"#;
    let (code, stdout, stderr) = check(&["-f", "-"], &keys, yaml);
    assert_eq!((code, &*stderr), (0, ""));
    assert!(stdout.contains("\n  8, active (the newest point)\n"), "{stdout}");
    assert!(stdout.starts_with("ScaledObject shop, trigger 0, external\nstandard input\n"));
    assert!(!stdout.contains('\u{1b}'), "there is colour in a pipe");
    assert!(!stdout.contains("marker"), "a key is shown");

    let (code, stdout, _) = check(&["-f", "-"], &[], yaml);
    assert_eq!(code, 1);
    assert!(stdout.contains("error: there are no Datadog keys"), "{stdout}");
    assert_eq!(check(&["-f", "-", "--offline"], &[], yaml).0, 0);
    assert_eq!(check(&["-f", "-"], &keys, &yaml.replace("query:", "qeury:")).0, 1);

    let (code, _, stderr) = check(&["-f", "-"], &keys, "kind: [");
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: standard input is neither YAML nor JSON: "), "{stderr}");
    let (code, _, stderr) = check(&["-f", "-"], &keys, "kind: Secret");
    assert_eq!(code, 1);
    let message = "there is no ScaledObject or ScaledJob in standard input, but: Secret";
    assert_eq!(stderr, format!("error: {message}\n"));

    for usage in [
        &["-f", "/nowhere/shop.yaml"][..],
        &["-f", "-", "--trigger", "mails"],
        &["-f", "-", "--through", "here"],
        &["-f", "-", "--watch"],
        &["-f", "-", "--metadata", "query=a"],
        &["--metadata", "query"],
        &["--metadata", "query=a", "--metadata", "query=b"],
        &["-f", "-", "--offline", "--through", "a:1"],
        &["-f", "-", "--through", "a?b:1"],
        &["-f", "-", "--through", "a:1", "--interval", "5s"],
        &["-f", "-", "--through", "a:1", "--watch", "--interval", "100ms"],
        &["-f", "-", "--ca-cert", "ca.pem"],
        &["-f", "-", "--server-name", "a"],
        &["-f", "-", "--through", "a:1", "--tls-client-cert", "a.pem"],
        &["-f", "-", "--through", "a:1", "--ca-cert", "/nowhere/ca.pem"],
        &[],
    ] {
        let (code, stdout, stderr) = check(usage, &keys, yaml);
        assert_eq!((code, &*stdout), (2, ""), "{usage:?}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
}

#[test]
fn the_examples_are_fine() {
    for example in examples() {
        let (code, stdout, stderr) =
            check(&["--offline", "-f", example.to_str().unwrap()], &[], "");
        assert_eq!((code, &*stderr), (0, ""), "{stdout}");
        assert!(!stdout.contains("warning: "), "{stdout}");
    }
}

/// Starts the sandbox on free ports; returns what it printed up to its last line.
fn start_sandbox(extra: &[&str]) -> (Running, String) {
    let free =
        ["--listen", "--admin-listen", "--status-listen", "--datadog-listen", "--agent-listen"];
    let free = free.map(|flag| [flag, "127.0.0.1:0"]);
    let arguments = [&["sandbox"], free.as_flattened(), extra].concat();
    // A proxy of the environment is none of the sandbox's business.
    let child = program(&arguments).env("HTTP_PROXY", "http://127.0.0.1:1").spawn();
    let mut running = Running::new(child.unwrap(), String::new());
    let stdout = BufReader::new(running.child.stdout.take().unwrap());
    let mut printed = String::new();
    for line in stdout.lines() {
        let line = line.unwrap();
        printed += &line;
        printed.push('\n');
        if line.starts_with("Ctrl-C") {
            return (running, printed);
        }
    }
    panic!("it ended after\n{printed}");
}

/// The first word after this one.
fn after<'a>(printed: &'a str, label: &str) -> &'a str {
    let (_, rest) = printed.split_once(label).unwrap_or_else(|| panic!("no {label} in\n{printed}"));
    rest.split_whitespace().next().unwrap()
}

#[tokio::test]
async fn the_sandbox_answers_as_keda_asks_and_ends_on_sigterm() {
    let (running, printed) = start_sandbox(&[]);
    let mut keda = Keda::at(&format!("http://{}", after(&printed, "The real scaler"))).await;
    for (query, value) in [
        ("avg:sandbox.flat{*}", 12.0),
        ("avg:sandbox.zero{*}", 0.0),
        ("avg:sandbox.negative{*}", -5.0),
        ("avg:sandbox.gaps{*}", 7.0),
        ("avg:sandbox.late{*}", 9.0),
        ("avg:sandbox.flat{*},avg:sandbox.negative{*}", 7.0),
    ] {
        let object = object(&[("query", query), ("queryAggregator", "sum")]);
        assert_eq!(keda.value(&object).await.unwrap(), value, "{query}");
    }
    // Of a certificate that is made anew with each start.
    let orders = keda.value(&metric("any", "queue-length-orders", &[])).await.unwrap();
    assert!((0.0..=60.0).contains(&orders), "{orders}");
    assert_eq!(keda.value(&metric("demo", "negative", &[])).await.unwrap(), -5.0);
    let mut stream =
        soon(keda.client.stream_is_active(object(&[("query", "avg:sandbox.flat{*}")])))
            .await
            .unwrap()
            .into_inner();
    assert!(soon(stream.message()).await.unwrap().unwrap().result);
    running.signal("TERM");
    assert!(soon(stream.message()).await.unwrap().is_none());
    assert_eq!(running.exit_code().await, Some(0));
}

#[tokio::test]
async fn the_simulated_datadog_checks_keys_and_its_limit() {
    let (running, printed) = start_sandbox(&["--datadog-only", "--rate-limit", "1"]);
    let url = after(&printed, "A simulated Datadog");
    let get = async |keys: &[(&str, &str)]| {
        let mut request = http_client()
            .get(format!("{url}/api/v1/query?from=0&to=90&query=avg:sandbox.flat%7B*%7D"));
        for (name, value) in keys {
            request = request.header(*name, *value);
        }
        soon(request.send()).await.unwrap()
    };
    assert_eq!(get(&[]).await.status(), 403);
    let keys = [
        ("dd-api-key", after(&printed, "DD_API_KEY=")),
        ("dd-application-key", after(&printed, "DD_APP_KEY=")),
    ];
    let response = get(&keys).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ratelimit-remaining"], "0");
    assert_eq!(get(&keys).await.status(), 429);
    running.signal("INT");
    assert_eq!(running.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used() {
    // A proxy is asked for the whole URL, which the fake Datadog answers just as well.
    let proxy = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let environment = [("DATADOG_HOST", "http://datadog.invalid"), ("HTTP_PROXY", &*proxy.url)];
    let (_running, mut keda, _) = start_serve(&environment).await;
    assert_eq!(keda.value(&object(&[])).await.unwrap(), 8.0);
    assert_eq!(proxy.asked()[0].headers["host"], "datadog.invalid");
}

#[tokio::test]
async fn no_key_is_in_the_log_of_an_http_2_connection() {
    let datadog = TlsDatadog::start().await;
    let ca_file = datadog.ca_file.to_str().unwrap();
    let environment =
        [("RUST_LOG", "trace"), ("DATADOG_HOST", &*datadog.url), ("SCALER_CA_FILE", ca_file)];
    let (mut running, mut keda, _) = start_serve(&environment).await;
    let log = running.log();
    assert_eq!(keda.value(&object(&[])).await.unwrap(), 8.0);
    running.signal("TERM");
    running.signal("INT");
    assert!(running.exit_code().await.is_some());
    let log = log.join().unwrap();
    assert!(log.contains(r#""peer":"Client""#), "the log does not reach down to HTTP/2");
    let around = log.lines().find(|line| line.contains(API_KEY) || line.contains(APP_KEY));
    assert_eq!(around, None);
}

#[tokio::test]
async fn no_key_is_ever_in_a_log_an_error_or_a_metric() {
    // Datadog quotes the keys back in every way it can.
    let echo = format!("no such key: {API_KEY} {APP_KEY}");
    let replies = [
        Reply::json(403, &json!({"errors": [echo]})),
        Reply::json(400, &json!({"errors": [echo]})),
        Reply::json(200, &json!({"status": "error", "error": format!("Invalid query {echo}")})),
        Reply::json(200, &json!({"status": "error", "error": format!("Query timed out {echo}")})),
        Reply::json(200, &json!({"status": echo})),
        Reply::json(500, &json!({"errors": [echo]})),
    ];
    let count = replies.len();
    let datadog = FakeDatadog::start(move |asked| {
        let (_, n) = asked.query.split_once("n:").unwrap();
        replies[n.trim_end_matches('}').parse::<usize>().unwrap()].clone()
    })
    .await;
    let environment = [("RUST_LOG", "trace"), ("DATADOG_HOST", &*datadog.url)];
    let (mut running, mut keda, admin) = start_serve(&environment).await;
    let log = running.log();
    let mut told = String::new();
    for n in 0..count {
        let query = format!("avg:a{{n:{n}}}");
        let object = object(&[("query", &query), ("datadogSite", API_KEY), ("colour", APP_KEY)]);
        told += &keda.value(&object).await.unwrap_err().to_string();
    }
    let bad = object(&[("age", "x"), ("apiKey", API_KEY), ("Query", APP_KEY), ("query", "")]);
    let message = "`age` is \"x\", but must be a whole number of seconds such as `90`, not negative; also \
                   `Query` is not known; did you mean `query`, which is missing?; also `apiKey` \
                   does not belong into metadata, which others can read; put the keys into a \
                   Secret, and refer to it with a TriggerAuthentication (`authenticationRef`)";
    check_status(keda.value(&bad).await, tonic::Code::InvalidArgument, message);
    let metrics = soon(http_client().get(format!("{admin}/metrics")).send()).await.unwrap();
    told += &metrics.text().await.unwrap();
    running.signal("TERM");
    running.signal("INT");
    assert!(running.exit_code().await.is_some());

    let log = log.join().unwrap();
    assert!(log.contains("metadata keys have no effect"), "{log}");
    assert!(datadog.asked().iter().all(|asked| asked.headers["dd-api-key"] == API_KEY));
    for text in [told, log] {
        let around = text.lines().find(|line| line.contains(API_KEY) || line.contains(APP_KEY));
        assert_eq!(around, None);
    }
}
