//! Admission webhooks: what the injector and the validator share.
//!
//! [`review`] answers AdmissionReviews whatever is thrown at it; [`bundle`] keeps the CA bundle in the webhook
//! configuration, so that the API server trusts the server's certificate.

pub mod bundle;
pub mod review;
