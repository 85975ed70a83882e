//! Images of programs that come from Debian's packages: iptables, MariaDB, BusyBox.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::base::program;
use super::{Entry, Image, Layer, libraries};
use crate::cluster::packages;
use crate::command::{command, output, run};
use crate::progress::Progress;

/// The programs that change a pod's firewall, with their modules.
pub(super) fn add_iptables(layer: &mut Layer) -> Result<()> {
    for multi in ["xtables-nft-multi", "xtables-legacy-multi"] {
        let binary = Path::new("/usr/sbin").join(multi);
        libraries::add(layer, &binary)?;
        layer.copy(&binary, &binary)?;
    }
    for family in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            let place = format!("/usr/sbin/{family}{verb}");
            layer.put(place, Entry::Link("xtables-nft-multi".into()));
            let place = format!("/usr/sbin/{family}-legacy{verb}");
            layer.put(place, Entry::Link("xtables-legacy-multi".into()));
            let place = format!("/usr/sbin/{family}-nft{verb}");
            layer.put(place, Entry::Link("xtables-nft-multi".into()));
        }
    }
    let modules = output(&mut command("dpkg", ["-L", "iptables"]))?;
    for module in modules.lines().filter(|line| line.ends_with(".so")) {
        layer.copy(Path::new(module), module)?;
    }
    Ok(())
}

/// Lets the image's program see the clock of the node with an offset, which is read each second from the file `offset`.
pub(super) fn add_faketime(image: &mut Image, offset: &str, progress: &Progress) -> Result<()> {
    packages::ensure(&["libfaketime"], progress)?;
    let files = output(&mut command("dpkg", ["-L", "libfaketime"]))?;
    let library = files
        .lines()
        .find(|line| line.ends_with("/libfaketimeMT.so.1"))
        .context("the package libfaketime has no libfaketimeMT.so.1")?;
    let mut layer = Layer::default();
    libraries::add(&mut layer, Path::new(library))?;
    layer.copy(Path::new(library), library)?;
    image.layers.push(layer);
    image.environment.extend([
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={offset}"),
        "FAKETIME_CACHE_DURATION=1".to_owned(),
        // A clock that is set does not change how fast time passes.
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "NO_FAKE_STAT=1".to_owned(),
    ]);
    Ok(())
}

/// A shell and the usual small tools, for tests to run inside the cluster.
pub(super) fn busybox(progress: &Progress) -> Result<Image> {
    packages::ensure(&["busybox"], progress)?;
    let mut image = program("busybox", Path::new("/bin/busybox"), "/bin/busybox")?;
    image.layers.push(busybox_links()?);
    image.entrypoint = vec!["/bin/sh".to_owned()];
    image.user = String::new();
    Ok(image)
}

fn busybox_links() -> Result<Layer> {
    let mut links = Layer::default();
    for applet in output(&mut command("/bin/busybox", ["--list"]))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        links.put(format!("/bin/{applet}"), Entry::Link("busybox".into()));
    }
    Ok(links)
}

/// Starts MariaDB on a copy of the prepared database, with the account and database the environment asks for, by the
/// names the well-known images of MySQL and MariaDB use.
const MARIADB_START: &str = r#"#!/bin/sh
set -e
data=/var/lib/mysql
[ -d "$data/mysql" ] || cp -a /usr/share/mysql/prepared/. "$data/"
{
  [ -z "$MYSQL_DATABASE" ] || echo "CREATE DATABASE IF NOT EXISTS \`$MYSQL_DATABASE\`;"
  if [ -n "$MYSQL_ROOT_PASSWORD" ]; then
    # A statement must be all of its line. The prepared accounts of single addresses have no password, and go before '%':
    # a sidecar's connections come from 127.0.0.1.
    echo "DROP USER IF EXISTS 'root'@'127.0.0.1';"
    echo "DROP USER IF EXISTS 'root'@'::1';"
    echo "CREATE USER IF NOT EXISTS 'root'@'%';"
    echo "ALTER USER 'root'@'%' IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';"
    echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
  fi
} > /tmp/start.sql
exec mariadbd --user=root --datadir="$data" --socket=/tmp/mysql.sock --init-file=/tmp/start.sql \
  --bind-address="${MYSQL_BIND_ADDRESS:-*}" --skip-name-resolve --innodb-log-file-size=8M --innodb-buffer-pool-size=32M \
  --innodb-flush-log-at-trx-commit=0 --performance-schema=off --aria-pagecache-buffer-size=8M "$@"
"#;

/// A MariaDB server whose database was prepared when the image was built.
pub(super) fn mariadb(cache: &Path, progress: &Progress) -> Result<Image> {
    packages::ensure(
        &["mariadb-server-core", "mariadb-client-core", "busybox"],
        progress,
    )?;
    let version = output(&mut command(
        "dpkg-query",
        ["-W", "-f=${Version}", "mariadb-server-core"],
    ))?;
    let prepared = cache.join(format!("mariadb-{}", version.replace([':', '/'], "_")));
    if !prepared.exists() {
        progress.step("prepare a database", || prepare(cache, &prepared))?;
    }
    let mut image = program("mariadb", Path::new("/usr/sbin/mariadbd"), "/usr/sbin/mariadbd")?;
    let mut tools = busybox_links()?;
    for tool in ["/bin/busybox", "/usr/bin/mariadb"] {
        libraries::add(&mut tools, Path::new(tool))?;
        tools.copy(Path::new(tool), tool)?;
    }
    for name in ["english", "charsets"] {
        let source = Path::new("/usr/share/mysql").join(name);
        tools.copy_tree(&source, &source, 0)?;
    }
    tools.put(
        "/var/lib/mysql",
        Entry::Folder {
            mode: 0o777,
            owner: 0,
        },
    );
    tools.put(
        "/usr/local/bin/start",
        Entry::Text {
            content: MARIADB_START.to_owned(),
            mode: 0o755,
        },
    );
    let mut database = Layer::default();
    database.copy_tree(&prepared, Path::new("/usr/share/mysql/prepared"), 0)?;
    image.layers.extend([tools, database]);
    image.entrypoint = vec!["/usr/local/bin/start".to_owned()];
    image.user = String::new();
    Ok(image)
}

/// An empty database with its system tables, made once: it takes seconds, a copy does not.
fn prepare(cache: &Path, prepared: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let draft = tempfile::tempdir_in(cache)?;
    let mut install = command("mariadb-install-db", ["--no-defaults", "--user=root"]);
    install.arg(format!("--datadir={}", draft.path().display()));
    install.args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--innodb-log-file-size=8M",
    ]);
    run(&mut install)?;
    fs::rename(draft.keep(), prepared).context("cannot keep the prepared database")
}
