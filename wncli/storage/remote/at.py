"""Which kind of place an address is of."""

from __future__ import annotations

from wncli.storage.addresses import Address
from wncli.storage.remote.places import RemotePlace


def place_at(address: Address) -> RemotePlace:
    """Return what reads at an address; nothing is asked yet.

    Raises:
        FileError: the address is none of its kind, or what reads it is not installed.
    """
    if address.scheme in {"s3", "gs", "az"}:
        from wncli.storage.remote.object_store import StorePlace

        return StorePlace(address)
    from wncli.storage.remote.hub import HubPlace
    from wncli.storage.remote.repository import Repository

    if address.scheme == "hf":
        return HubPlace(address, Repository.of_address(address))
    repository = Repository.of_page(address.given)
    if repository is not None:
        return HubPlace(repository.address(address.meter), repository)
    from wncli.storage.remote.web_place import WebPlace

    return WebPlace(address)
