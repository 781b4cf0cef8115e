//! What a guest that lies or says nothing can do to the shim: its own containers end, nothing waits for ever. Time is
//! simulated: it passes when there is nothing else to do.

use std::os::unix::fs::OpenOptionsExt;

use super::fake_guest::Manners;
use super::*;

/// How long the shim waits for an answer here.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens before a guest has lost any patience that there is with it; whoever waits for ever fails, and does not hang.
async fn in_time<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(20 * PATIENCE, awaited).await.expect("it was waited for in vain")
}

async fn fixture(arguments: serde_json::Value) -> Fixture {
    Fixture::with_patience(arguments, PATIENCE).await
}

async fn running() -> Fixture {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    fixture
}

/// The container has ended with its guest, and can be deleted.
async fn assert_over(fixture: &Fixture) {
    let container = fixture.tasks.container("c1").unwrap();
    assert_eq!(in_time(container.init.wait()).await.status, 137);
    assert_eq!(in_time(fixture.tasks.delete("c1", "")).await.unwrap().status, 137);
    assert!(fixture.tasks.is_empty());
    assert_eq!(fixture.topics().await.last().unwrap(), "/tasks/delete");
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn every_call_to_a_silent_guest_ends_in_twice_the_patience_with_the_reason_and_ends_the_guest() {
    for number in 0..4 {
        let fixture = running().await;
        fixture.tasks.exec("c1", "e1", br#"{"args":["sleep"],"cwd":"/"}"#, Stdio::default()).unwrap();
        fixture.guest.turn(Manners::Silent);
        let begin = tokio::time::Instant::now();
        let tasks = &fixture.tasks;
        let answer = match number {
            0 => tasks.pause("c1").await,
            1 => tasks.kill("c1", "", 15, false).await,
            2 => tasks.start("c1", "e1").await.map(drop),
            _ => tasks.processes("c1").await.map(drop),
        };
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("has not answered") && error.contains("agent_timeout"), "{number}: {error}");
        assert!(begin.elapsed() <= 2 * PATIENCE + Duration::from_secs(1), "{number}: {:?}", begin.elapsed());
        assert_over(&fixture).await;
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_kill_ends_a_silent_guest_and_is_no_error() {
    let fixture = running().await;
    fixture.guest.turn(Manners::Silent);
    let begin = tokio::time::Instant::now();
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert!(begin.elapsed() <= PATIENCE + Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_container_that_was_never_started_is_deleted_from_a_silent_guest() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.guest.turn(Manners::Silent);
    assert_eq!(in_time(fixture.tasks.delete("c1", "")).await.unwrap().status, 137);
    assert!(fixture.tasks.is_empty());
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_create_that_is_never_answered_fails_and_leaves_nothing() {
    for manners in [Manners::Silent, Manners::Deaf("create")] {
        let fixture = fixture(json!(["sleep"])).await;
        fixture.guest.turn(manners);
        let begin = tokio::time::Instant::now();
        let error = fixture.create(Stdio::default()).await.unwrap_err().to_string();
        assert!(error.contains("has not answered"), "{error}");
        assert!(begin.elapsed() <= 10 * PATIENCE + Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(fixture.tasks.is_empty());
        let share = fixture.bundle.parent().unwrap().join("state/default/c1/share");
        assert!(!share.join("private/c1").exists());
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_slow_call_of_a_lively_guest_is_waited_for() {
    let fixture = running().await;
    fixture.guest.turn(Manners::Deaf("pause"));
    let (tasks, guest) = (fixture.tasks.clone(), fixture.guest.clone());
    let pausing = tokio::spawn(async move { tasks.pause("c1").await });
    tokio::time::sleep(5 * PATIENCE).await;
    guest.turn(Manners::Honest);
    // The agent is still there for everybody else.
    assert_eq!(fixture.tasks.processes("c1").await.unwrap().len(), 1);
    assert!(!pausing.is_finished());
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
    pausing.abort();
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_that_lets_a_killed_container_live_is_ended() {
    let fixture = running().await;
    fixture.guest.turn(Manners::Immortal);
    let begin = tokio::time::Instant::now();
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
    assert!(begin.elapsed() <= 10 * PATIENCE + Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn output_without_end_does_not_keep_a_killed_container_alive() {
    let fixture = fixture(json!(["flood"])).await;
    let (stdout, path) = fixture.fifo("stdout");
    fixture.create(Stdio { stdout, ..Stdio::default() }).await.unwrap();
    let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(path).unwrap();
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    fixture.tasks.start("c1", "").await.unwrap();
    let begin = tokio::time::Instant::now();
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    // The guest says that there is more to come, and what comes is read.
    in_time(fixture.tasks.container("c1").unwrap().init.wait()).await;
    assert!(begin.elapsed() <= Duration::from_secs(2), "{:?}", begin.elapsed());
    in_time(fixture.tasks.delete("c1", "")).await.unwrap();
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn readers_that_stall_hold_up_no_exit_of_a_container_with_its_processes_for_two_seconds() {
    // With its machine a process ends in the middle of what it writes, too.
    for (lost, process) in [(false, "flood"), (true, "sleep")] {
        let fixture = fixture(json!(["sleep"])).await;
        let mut readers = Vec::new();
        let mut stalled = |name| {
            let (stdout, path) = fixture.fifo(name);
            readers.push(tokio::net::unix::pipe::OpenOptions::new().open_receiver(path).unwrap());
            Stdio { stdout, ..Stdio::default() }
        };
        fixture.create(stalled("c1")).await.unwrap();
        fixture.tasks.start("c1", "").await.unwrap();
        let begin = tokio::time::Instant::now();
        for id in ["e1", "e2", "e3"] {
            let process = json!({"args": [process], "cwd": "/"}).to_string();
            fixture.tasks.exec("c1", id, process.as_bytes(), stalled(id)).unwrap();
            fixture.tasks.start("c1", id).await.unwrap();
        }
        if lost {
            fixture.pod.stop("it is lost");
        } else {
            fixture.tasks.kill("c1", "", 9, false).await.unwrap();
        }
        in_time(fixture.tasks.container("c1").unwrap().init.wait()).await;
        assert!(begin.elapsed() <= Duration::from_secs(if lost { 1 } else { 2 }), "{:?}", begin.elapsed());
        in_time(fixture.tasks.delete("c1", "")).await.unwrap();
        let exits = fixture.topics().await.iter().filter(|topic| *topic == "/tasks/exit").count();
        assert_eq!(exits, 4);
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_process_without_a_pid_is_no_process() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.guest.turn(Manners::Pid(0));
    let error = fixture.create(Stdio::default()).await.unwrap_err().to_string();
    assert!(error.contains("process number 0"), "{error}");
    assert!(fixture.tasks.is_empty());
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn any_other_pid_is_only_a_number() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.guest.turn(Manners::Pid(u32::MAX));
    assert_eq!(fixture.create(Stdio::default()).await.unwrap(), std::process::id());
    fixture.tasks.start("c1", "").await.unwrap();
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn long_words_of_the_guest_break_nothing() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.guest.turn(Manners::Verbose(3 << 20));
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_that_lets_another_killed_process_live_is_ended_whatever_it_answers() {
    for manners in [Manners::Immortal, Manners::Forgetful, Manners::Refusing(10)] {
        let fixture = running().await;
        fixture.tasks.exec("c1", "e1", br#"{"args":["sleep"],"cwd":"/"}"#, Stdio::default()).unwrap();
        fixture.tasks.start("c1", "e1").await.unwrap();
        fixture.guest.turn(manners);
        let begin = tokio::time::Instant::now();
        let answer = fixture.tasks.kill("c1", "e1", 9, false).await;
        assert_eq!(answer.is_ok(), manners == Manners::Immortal);
        let exec = fixture.tasks.container("c1").unwrap().process("e1").unwrap();
        assert_eq!(in_time(exec.wait()).await.status, 137);
        assert!(begin.elapsed() <= 10 * PATIENCE + Duration::from_secs(10), "{:?}", begin.elapsed());
        assert!(in_time(fixture.stop_report()).await.contains("process e1 of container c1"));
        assert_over(&fixture).await;
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_whose_containers_processes_outlive_the_first_one_is_ended() {
    let fixture = running().await;
    fixture.tasks.exec("c1", "e1", br#"{"args":["sleep"],"cwd":"/"}"#, Stdio::default()).unwrap();
    fixture.tasks.start("c1", "e1").await.unwrap();
    fixture.guest.end("c1", 0);
    let begin = tokio::time::Instant::now();
    let container = fixture.tasks.container("c1").unwrap();
    assert_eq!(in_time(container.init.wait()).await.status, 0);
    assert!(begin.elapsed() <= 10 * PATIENCE + Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(in_time(container.process("e1").unwrap().wait()).await.status, 137);
    in_time(fixture.tasks.delete("c1", "")).await.unwrap();
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_that_lets_a_container_live_that_was_never_started_is_ended() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.guest.turn(Manners::Immortal);
    assert_eq!(in_time(fixture.tasks.delete("c1", "")).await.unwrap().status, 137);
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_that_hangs_up_within_a_call_is_known_to_be_lost_in_two_seconds() {
    let fixture = running().await;
    fixture.guest.turn(Manners::HangsUp("pause"));
    let begin = tokio::time::Instant::now();
    let error = fixture.tasks.pause("c1").await.unwrap_err().to_string();
    assert!(error.contains("the agent in the guest no longer answers"), "{error}");
    assert_over(&fixture).await;
    assert!(begin.elapsed() <= Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_guest_without_memory_for_ever_is_told_of_once_a_second_and_the_end_of_its_container_too() {
    let fixture = fixture(json!(["sleep"])).await;
    fixture.guest.turn(Manners::OutOfMemory);
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let told = |topics: &[String]| topics.iter().filter(|topic| *topic == "/tasks/oom").count();
    assert_eq!(told(&fixture.topics().await), 1, "the first is told at once");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(told(&fixture.topics().await), 61);
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn what_a_guest_gives_as_reason_is_short_and_moves_no_cursor() {
    let fixture = running().await;
    fixture.guest.turn(Manners::Refusing(3 << 20));
    let message = fixture.tasks.kill("c1", "", 15, false).await.unwrap_err().to_string();
    assert!(message.len() < 5000, "{}", message.len());
    assert!(message.contains("bytes left out") && !message.contains('\x1b'), "{message}");
    fixture.guest.turn(Manners::Honest);
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn processes_are_listed_by_names_that_were_given_and_not_without_end() {
    let fixture = running().await;
    fixture.guest.turn(Manners::Crowded(1000));
    let listed = fixture.tasks.processes("c1").await.unwrap();
    assert_eq!(listed.len(), 1000);
    assert!(listed.iter().all(|process| process.exec_id.is_empty()));
    fixture.guest.turn(Manners::Crowded(100_000));
    let error = fixture.tasks.processes("c1").await.unwrap_err().to_string();
    assert!(error.contains("100000 processes"), "{error}");
    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_over(&fixture).await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn an_exit_status_that_cannot_be_is_that_of_an_unknown_process() {
    let fixture = running().await;
    fixture.guest.end("c1", u32::MAX);
    let container = fixture.tasks.container("c1").unwrap();
    assert_eq!(in_time(container.init.wait()).await.status, 255);
    in_time(fixture.tasks.delete("c1", "")).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_process_that_talks_back_on_its_input_loses_it() {
    let fixture = fixture(json!(["talk-back"])).await;
    let (stdin, path) = fixture.fifo("stdin");
    fixture.create(Stdio { stdin, ..Stdio::default() }).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    // It ends by itself as soon as nobody takes what it says.
    let container = fixture.tasks.container("c1").unwrap();
    assert_eq!(in_time(container.init.wait()).await.status, 0);
    assert_eq!(fixture.tasks.processes("c1").await.unwrap().len(), 1);
    in_time(fixture.tasks.delete("c1", "")).await.unwrap();
    let nobody = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    assert_eq!(nobody.unwrap_err().raw_os_error(), Some(libc::ENXIO), "nobody reads the input any more");
}
