// Memory for what is all written before it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

namespace gemlens {

// While one lives, large memory that rooms of its thread give back waits for the next of that size. Else the system would take
// it and make each page anew, layer by layer.
class Shelf {
public:
    Shelf() : before_(std::exchange(own_, this)) {}
    ~Shelf() { own_ = before_; }
    Shelf(const Shelf&) = delete;
    Shelf& operator=(const Shelf&) = delete;

    using Bytes = std::unique_ptr<std::byte[]>;
    static Bytes take(std::size_t size) {
        if (own_ && size >= LARGE)
            if (auto found = own_->waiting_.extract(size)) return std::move(found.mapped());
        return Bytes(new std::byte[size]);
    }
    static void put(std::size_t size, Bytes bytes) {
        if (own_ && size >= LARGE) own_->waiting_.emplace(size, std::move(bytes));
    }

private:
    static constexpr std::size_t LARGE = 1 << 16;
    static inline thread_local Shelf* own_ = nullptr;
    Shelf* before_;
    std::multimap<std::size_t, Bytes> waiting_;
};

template <class Each>
class Room {
public:
    Room() = default;
    explicit Room(std::int64_t count) : size_(static_cast<std::size_t>(count) * sizeof(Each)), bytes_(Shelf::take(size_)) {}
    Room(Room&&) noexcept = default;
    Room& operator=(Room&&) noexcept = default;
    ~Room() {
        if (bytes_) Shelf::put(size_, std::move(bytes_));
    }
    Each* data() const { return reinterpret_cast<Each*>(bytes_.get()); }

private:
    std::size_t size_ = 0;
    Shelf::Bytes bytes_;
};
using Numbers = Room<float>;

}  // namespace gemlens
