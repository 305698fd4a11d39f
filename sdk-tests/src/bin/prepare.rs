//! Fetches and builds what the tests need from the package registries, before any of them starts.

fn main() -> anyhow::Result<()> {
    surefoot_sdk_tests::languages::prepare_all()
}
