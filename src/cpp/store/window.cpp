#include "store/window.hpp"

#include "base/error.hpp"
#include "store/store.hpp"

namespace ecrec {

Window::Window(std::shared_ptr<const Store> store) : store_(std::move(store)) {
    for (int peer = 0; peer < store_->place().shards; ++peer) buffers_.emplace_back(store_, in_use_);
}

RowBuffer& Window::buffer(int peer) {
    store_->check_peer(peer);
    return buffers_[static_cast<std::size_t>(peer)];
}

void Window::check_room(const char* where, std::size_t rows, std::size_t bytes) const {
    for (const RowBuffer& buffer : buffers_) buffer.check_room(where, rows, bytes);
}

std::size_t Window::rows() const {
    std::size_t sum = 0;
    for (const RowBuffer& buffer : buffers_) sum += buffer.size();
    return sum;
}

std::size_t Window::record_bytes() const {
    std::size_t sum = 0;
    for (const RowBuffer& buffer : buffers_) sum += buffer.record_bytes();
    return sum;
}

std::size_t Window::checked(int peer, int class_id) const {
    store_->check_peer(peer);
    store_->check_class(class_id);
    return static_cast<std::size_t>(peer) * classes_max + static_cast<std::size_t>(class_id);
}

}  // namespace ecrec
