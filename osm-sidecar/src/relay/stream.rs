//! One stream of Envoy's: passed on to a controller, or answered here when there is none.
//!
//! Invariants: a stream that a controller has begun to answer is never answered from what is kept; Envoy is told of
//! every change of sides by the end of its stream, and reports on the next one what it has. So neither side ever has
//! to guess what the other sent.

use std::{future::pending, pin::pin, time::Duration};

use bytes::Bytes;
use osm_core::relay::{Live, Standby};
use osm_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::{Code, Status, Streaming};

use super::{Relay, controller::Connection, page::Side};

/// Requests on their way to the controller.
const QUEUE: usize = 16;
/// How long a starting proxy waits for a controller that is connected and says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether the configuration is complete.
const SETTLE: Duration = Duration::from_secs(2);
/// Requests that are remembered until a controller answers. A proxy sends few more than one of each kind.
const UNANSWERED: usize = 64;

type Responses = mpsc::Sender<Result<Bytes, Status>>;

/// How a controller's stream ended.
enum End {
    /// Envoy is to open another.
    Over(Status),
    /// No controller has answered anything.
    Unanswered(Status),
}

/// Serves one stream until it ends.
pub(super) async fn serve(relay: &Relay, mut envoy: Streaming<Bytes>, responses: Responses) {
    relay.turn.send_modify(|turn| *turn += 1);
    let mut turn = relay.turn.subscribe();
    let status = tokio::select! {
        biased;
        _ = turn.changed() => Status::aborted("the proxy has opened a newer stream"),
        () = responses.closed() => return,
        status = converse(relay, &mut envoy, &responses) => status,
    };
    let _ = responses.send(Err(status)).await;
}

async fn converse(relay: &Relay, envoy: &mut Streaming<Bytes>, responses: &Responses) -> Status {
    let mut unanswered = Vec::new();
    let reason = match relay.connection().await {
        Ok(connection) => match pass(relay, connection, envoy, responses, &mut unanswered).await {
            End::Over(status) => {
                relay.state.set(Side::Nobody);
                return status;
            }
            End::Unanswered(status) => status,
        },
        Err(error) => Status::unavailable(format!("{error:#}")),
    };
    let summary = {
        let keeper = relay.keeper.lock();
        keeper.is_complete().then(|| keeper.summary())
    };
    let Some(summary) = summary else {
        relay.state.set(Side::Nobody);
        return reason;
    };
    println!("no controller answers ({}): {summary}", reason.message());
    relay.state.set(Side::Kept);
    let status = stand_by(relay, envoy, responses, unanswered).await;
    relay.state.set(Side::Nobody);
    status
}

/// Passes messages on until either side ends.
async fn pass(
    relay: &Relay,
    connection: Connection,
    envoy: &mut Streaming<Bytes>,
    responses: &Responses,
    unanswered: &mut Vec<Bytes>,
) -> End {
    let (requests, queued) = mpsc::channel(QUEUE);
    let mut opening = pin!(connection.open(queued));
    let mut controller = None;
    let mut patience = pin!(sleep(PATIENCE));
    let mut settle = interval(SETTLE);
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut live = Live::new();
    let mut answered = false;
    let ended = |status: Status, answered: bool| match status.code() {
        // A controller has answered, and that it does not serve this proxy.
        Code::PermissionDenied | Code::Unauthenticated => End::Over(status),
        _ if answered => End::Over(Status::unavailable(format!(
            "the stream to the controller has ended: {}",
            status.message()
        ))),
        _ => End::Unanswered(status),
    };
    loop {
        tokio::select! {
            opened = &mut opening, if controller.is_none() => match opened {
                Ok(stream) => {
                    controller = Some(stream);
                    relay.retry.lock().reset();
                    relay.state.set(Side::Controller);
                }
                Err(status) => return ended(status, false),
            },
            response = next(&mut controller) => match response {
                Ok(Some(message)) => {
                    answered = true;
                    *unanswered = Vec::new();
                    if relay.keeper.lock().store().is_some() {
                        live.on_response(message.clone());
                    }
                    if responses.send(Ok(message)).await.is_err() {
                        return End::Over(Status::cancelled("the proxy is gone"));
                    }
                }
                Ok(None) => return ended(Status::unavailable("it was closed"), answered),
                Err(status) => return ended(status, answered),
            },
            request = envoy.message() => {
                let message = match request {
                    Ok(Some(message)) => message,
                    Ok(None) => return End::Over(Status::ok("")),
                    Err(status) => return End::Over(status),
                };
                let request = match hear(relay, &mut live, message.clone()) {
                    Ok(request) => request,
                    Err(status) => return End::Over(status),
                };
                if !answered && unanswered.len() < UNANSWERED {
                    unanswered.push(message);
                }
                if requests.send(request).await.is_err() && controller.is_some() {
                    return ended(Status::unavailable("it takes no more requests"), answered);
                }
            },
            _ = settle.tick() => {
                let mut keeper = relay.keeper.lock();
                if let Some(store) = keeper.store() {
                    let was_complete = store.is_complete();
                    let changes = live.settle(store);
                    keeper.write(&changes);
                    if !was_complete && keeper.is_complete() {
                        println!("{}", keeper.summary());
                    }
                }
            },
            () = &mut patience, if !answered && live.is_starting() && relay.keeper.lock().is_complete() => {
                return End::Unanswered(Status::deadline_exceeded(format!("connected, but silent for {PATIENCE:?}")));
            }
        }
    }
}

/// The next response of a stream that may not be open yet.
async fn next(controller: &mut Option<Streaming<Bytes>>) -> Result<Option<Bytes>, Status> {
    match controller {
        Some(controller) => controller.message().await,
        None => pending().await,
    }
}

/// Takes note of a request and says what to pass on.
fn hear(relay: &Relay, live: &mut Live, message: Bytes) -> Result<Bytes, Status> {
    let mut keeper = relay.keeper.lock();
    let Some(store) = keeper.store() else {
        return Ok(message);
    };
    let mut request = decode(message.clone())?;
    let heard = live.on_request(store, &mut request);
    keeper.write(&heard.changes);
    Ok(if heard.altered {
        request.encode_to_vec().into()
    } else {
        message
    })
}

/// Answers from what is kept until a controller can be reached.
async fn stand_by(
    relay: &Relay,
    envoy: &mut Streaming<Bytes>,
    responses: &Responses,
    unanswered: Vec<Bytes>,
) -> Status {
    let mut standby = Standby::new();
    for message in unanswered {
        if let Err(status) = answer(relay, &mut standby, message, responses).await {
            return status;
        }
    }
    let mut reached = pin!(relay.reach());
    loop {
        tokio::select! {
            () = &mut reached => {
                println!("a controller can be reached again");
                return Status::unavailable("a controller can be reached again");
            }
            request = envoy.message() => {
                let message = match request {
                    Ok(Some(message)) => message,
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                };
                if let Err(status) = answer(relay, &mut standby, message, responses).await {
                    return status;
                }
            }
        }
    }
}

async fn answer(
    relay: &Relay,
    standby: &mut Standby,
    message: Bytes,
    responses: &Responses,
) -> Result<(), Status> {
    let request = decode(message)?;
    if let Some(error) = &request.error_detail {
        let reason: String = error
            .message
            .chars()
            .filter(|each| !each.is_control())
            .take(300)
            .collect();
        println!("the proxy rejects what it once accepted: {reason}");
    }
    let answers = match relay.keeper.lock().store() {
        Some(store) => standby.on_request(store, &request),
        None => return Err(Status::unavailable("nothing is kept any more")),
    };
    for answer in answers {
        let bodies = {
            let keeper = relay.keeper.lock();
            let bodies = answer.resources.iter().map(|place| keeper.read(*place));
            bodies.collect::<Result<Vec<_>, _>>()
        };
        let bodies =
            bodies.map_err(|error| Status::internal(format!("what is kept cannot be read: {error}")))?;
        let sent = responses.send(Ok(answer.encode(bodies))).await;
        sent.map_err(|_| Status::cancelled("the proxy is gone"))?;
    }
    Ok(())
}

fn decode(message: Bytes) -> Result<DeltaDiscoveryRequest, Status> {
    DeltaDiscoveryRequest::decode(message)
        .map_err(|error| Status::invalid_argument(format!("the request is malformed: {error}")))
}
