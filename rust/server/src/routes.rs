/// Paths of the server's own routes, which no module can have.
pub(crate) const BUILT_IN_PATHS: [&str; 5] = [
    "/api/build_info",
    "/api/modules_info",
    "/metrics",
    "/health/live",
    "/health/ready",
];
