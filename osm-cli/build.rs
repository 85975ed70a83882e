//! Rebuilds the program when the chart it embeds changes.

fn main() {
    println!("cargo:rerun-if-changed=../charts/osm");
    println!("cargo:rerun-if-env-changed=OSM_GIT_COMMIT");
    println!("cargo:rerun-if-env-changed=OSM_BUILD_DATE");
}
