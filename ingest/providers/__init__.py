"""The providers we know. Adding one: a folder beside this file, a line below."""

from collections.abc import Mapping

from ingest.delivery import Provider
from ingest.providers import dialedin, dialgood, diallink, dialpad

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (dialpad.PROVIDER, diallink.PROVIDER, dialgood.PROVIDER, dialedin.PROVIDER)
}
