//! Real programs.

use anyhow::ensure;

use super::Test;
use super::context::{Context, REDIS};

pub(super) const TESTS: &[Test] = &[Test { name: "redis_serves_its_own_benchmark", check: redis }];

/// Asks until the server answers, at most 600 times, and fails with the last answer.
const WAIT: &str = "n=0; until redis-cli ping >/dev/null 2>&1; do n=$((n+1)); [ $n -lt 600 ] || exec redis-cli ping; sleep 0.1; done";

fn redis(context: &Context) -> anyhow::Result<()> {
    let server = context.start(REDIS, "redis", &[], &["redis-server", "--save", ""])?;
    server.exec("wait", &["sh", "-c", WAIT])?.expect_status(0)?;
    server.exec("set", &["redis-cli", "set", "k1", "v1"])?.expect_status(0)?;
    let ended = server.exec("get", &["redis-cli", "get", "k1"])?.expect_status(0)?;
    ensure!(ended.text() == "v1\n", "{ended:?}");
    let benchmark = ["redis-benchmark", "-n", "1000", "-q", "-t", "set,get"];
    let ended = server.exec("benchmark", &benchmark)?.expect_status(0)?;
    ensure!(ended.text().contains("requests per second"), "{ended:?}");
    server.remove()
}
