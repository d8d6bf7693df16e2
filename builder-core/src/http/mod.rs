//! One HTTP client: TLS roots, proxies, retry, redaction, limits.
//!
//! Architecture invariant: the only user of `reqwest`; neither OCI nor Dockerfiles are known here.
