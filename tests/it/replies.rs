//! Every form of answer that Datadog is known to give, through the real client.

use tonic::Code;

use crate::harness::{FakeDatadog, Reply, Server, object};

/// What KEDA is told when Datadog gives this reply to a first request. In messages, `HOST` stands
/// for the fake Datadog's address.
async fn check(reply: &str, extra: &[(&str, &str)], expected: Result<f64, (Code, &str)>) {
    let recorded = Reply::recorded(reply);
    let datadog = FakeDatadog::start(move |_| recorded.clone()).await;
    let server = Server::start(&datadog).await;
    let result = server.client().await.value(&object(extra)).await;
    match expected {
        Ok(value) => {
            assert_eq!(result.map_err(|status| status.to_string()), Ok(value), "{reply}");
        }
        Err((code, message)) => {
            let host = datadog.url.trim_start_matches("http://");
            let told = result.map_err(|status| (status.code(), status.message().to_owned()));
            assert_eq!(told, Err((code, message.replace("HOST", host))), "{reply}");
        }
    }
    assert_eq!(datadog.asked().len(), 1, "{reply}");
}

#[tokio::test]
async fn answers_with_data_are_values() {
    check("single_series", &[], Ok(4.25)).await;
    check("single_series", &[("lastAvailablePointOffset", "2")], Ok(3.5)).await;
    check("a_day", &[("age", "86400")], Ok(4.87)).await;
    check("sparse_float_timestamps", &[], Ok(17.0)).await;
    check("grouped_one_series_with_rate_limit", &[], Ok(12.5)).await;
    check("grouped_two_series", &[("queryAggregator", "max")], Ok(8.5)).await;
    check("grouped_two_series", &[("queryAggregator", "average")], Ok(5.5)).await;
    check("odd_fields", &[], Ok(6.0)).await;
}

#[tokio::test]
async fn nulls_are_passed_over() {
    check("last_two_null", &[], Ok(2144.25)).await;
    check("last_two_null", &[("lastAvailablePointOffset", "1")], Ok(2467.5)).await;
    check("null_padded_arithmetic", &[], Ok(0.8)).await;
    check("null_padded_arithmetic", &[("lastAvailablePointOffset", "1")], Ok(0.7)).await;
    check("three_queries_one_without_data", &[("queryAggregator", "sum")], Ok(11.0)).await;
}

const NO_DATA: (Code, &str) = (
    Code::NotFound,
    "the query has no data in the last 90 seconds; wait for data, widen `age`, or set \
     `metricUnavailableValue`",
);

#[tokio::test]
async fn no_data_is_not_found_or_the_fallback_value() {
    for reply in ["empty_series", "all_null"] {
        check(reply, &[], Err(NO_DATA)).await;
        check(reply, &[("metricUnavailableValue", "7")], Ok(7.0)).await;
    }
    let beyond = ("lastAvailablePointOffset", "3");
    let message = "the query has 3 points with a value in the last 90 seconds, and \
                   `lastAvailablePointOffset` leaves none of them; lower it, widen `age`, or set \
                   `metricUnavailableValue`";
    check("single_series", &[beyond], Err((Code::NotFound, message))).await;
    check("single_series", &[beyond, ("metricUnavailableValue", "7")], Ok(7.0)).await;
    let extra = [("metricUnavailableValue", "7"), ("timeWindowOffset", "30")];
    check("empty_series", &extra, Ok(7.0)).await;
}

#[tokio::test]
async fn several_series_need_an_aggregator() {
    let message = "the query returns 2 series; set `queryAggregator`, or change it to return one";
    check("grouped_two_series", &[], Err((Code::InvalidArgument, message))).await;
}

/// With a fallback value set, which must not be served.
async fn check_error(reply: &str, code: Code, message: &str) {
    check(reply, &[("metricUnavailableValue", "7")], Err((code, message))).await;
}

#[tokio::test]
async fn a_rejected_query_is_its_authors_affair() {
    let code = Code::InvalidArgument;
    check_error(
        "error_parse",
        code,
        "Datadog rejects the query: Error parsing query: unable to parse \
         sum:shop.orders{env:a b}: Rule 'scope_expr' didn't match at ' b}' (line 1, column 23)",
    )
    .await;
    let text = "Datadog rejects the query: Invalid query input";
    check_error("error_invalid_input", code, text).await;
    let rollup = format!("{text}: Unsupported rollup mode: median");
    check_error("error_rollup", code, &rollup).await;
    let retention = format!("{text}: queries ending outside the retention date are invalid");
    check_error("error_retention", code, &retention).await;
    check_error("http_400", code, "Datadog rejects the query: Query cannot be empty").await;
    check_error("http_414", code, "Datadog rejects the query: it is too long").await;
}

#[tokio::test]
async fn an_outage_is_nobodys_fault() {
    for (reply, what) in [
        ("error_internal", "Internal error"),
        ("error_timed_out", "Query timed out"),
        ("http_500_empty", "500"),
        ("http_502_edge", "502"),
        ("http_504_html", "504"),
    ] {
        let message = format!("Datadog fails at HOST ({what}); nothing is wrong with the query");
        check_error(reply, Code::Unavailable, &message).await;
    }
}

#[tokio::test]
async fn refused_keys_are_the_administrators_affair() {
    for (reply, status) in [("http_401", 401), ("http_403_edge", 403), ("http_403_short", 403)] {
        let message = format!(
            "Datadog refuses the keys ({status}) at HOST; check that they belong to this site and \
             may read metrics (`timeseries_query`)"
        );
        check_error(reply, Code::FailedPrecondition, &message).await;
    }
}

#[tokio::test]
async fn a_spent_rate_limit_says_when_it_ends() {
    let code = Code::ResourceExhausted;
    check_error(
        "http_429_json",
        code,
        "Datadog's rate limit is spent at HOST: 1600 requests each 3600 s; it resets in 512 s; \
         ask for fewer queries or windows (`age`), or ask Datadog for a higher limit",
    )
    .await;
    for reply in ["http_429_html", "http_429_empty", "http_429_old_text"] {
        let message = "Datadog's rate limit is spent at HOST; ask for fewer queries \
                       or windows (`age`), or ask Datadog for a higher limit";
        check_error(reply, code, message).await;
    }
}

#[tokio::test]
async fn a_422_has_the_fallback_value_too() {
    let message = "Datadog cannot process the query at the moment (422); that passes, and \
                   `metricUnavailableValue` would bridge it";
    check("http_422", &[], Err((Code::Unavailable, message))).await;
    check("http_422", &[("metricUnavailableValue", "7")], Ok(7.0)).await;
}

#[tokio::test]
async fn what_is_not_understood_is_never_no_data() {
    for (reply, what) in
        [("not_json", "it is not a JSON object"), ("truncated", "it is not a JSON object")]
    {
        let message = format!("the answer from HOST is not understood: {what}");
        check_error(reply, Code::Internal, &message).await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let message =
        "HOST is not the Datadog API (302); check `DD_SITE`, `--datadog-url` and the proxy";
    check_error("redirect", Code::FailedPrecondition, message).await;
}
