#!/usr/bin/env bash
# Makes sure that the packages of packages.apt are there: installs them as root where apt is, else names what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v dpkg-query >/dev/null || { echo "not a Debian system: tests that need $(sed -n 's/ .*//;/^[a-z]/p' packages.apt | xargs) are skipped where these are missing"; exit 0; }
missing=()
while read -r name _; do
  [[ -z $name || $name == \#* ]] && continue
  dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
done < packages.apt
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then
  echo "installing from packages.apt: ${missing[*]}"
  apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing: ${missing[*]}; the tests that need them are skipped. To run them too: sudo apt-get install ${missing[*]}"
fi
